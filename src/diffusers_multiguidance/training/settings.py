"""Settings of the scripts: dataclasses whose fields are the flags, checked when they are made.

train_denoiser(DenoiserSettings(train_data_dir="runs/circles-32/data", output_dir="runs/circles-32/unet"))
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LearningRateSchedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]


def flag(default: Any = MISSING, help: str | None = None) -> Any:
    """A field with its help; one without a default has to be given, and a list is copied for every instance."""
    metadata = {"help": help}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Settings:
    """What `recipe.parse` fills. A subclass checks its values in `__post_init__`, after `super().__post_init__()`.

    Raises:
        ValueError: for a value that is none of a `Literal`'s.
    """

    def __init_subclass__(cls) -> None:
        """A field that a subclass only gives another default keeps its help."""
        inherited = getattr(super(cls, cls), "__dataclass_fields__", {})
        for name, default in list(vars(cls).items()):
            if name in inherited and not isinstance(default, Field):
                setattr(cls, name, flag(default, inherited[name].metadata.get("help")))

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            if value is not None and Path in kinds:
                setattr(self, name, Path(value))
            choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
            if value is not None and choices and value not in choices:
                raise ValueError(f"`--{name}` is {value!r}; expected one of {choices}.")


def default_of(settings: Settings, name: str) -> Any:
    """What the named field is unless given."""
    (found,) = (one for one in fields(settings) if one.name == name)
    return found.default if found.default_factory is MISSING else found.default_factory()


def check_numbers(
    settings: Settings, *names: str, at_least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    """Raise `ValueError` for the first of the named settings that is a number out of range; None is no number."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (at_least <= value < below and value > above):
            limits = {"of at least": at_least, "above": above, "below": below}
            expected = " and ".join(f"{word} {limit}" for word, limit in limits.items() if math.isfinite(limit))
            raise ValueError(f"`--{name}` is {value}; expected a number {expected or 'that is finite'}.")


def read_size(resolution: str, name: str) -> tuple[int, int]:
    """Height and width of "64", a square, or "32x64"; `name` is the flag's, for the error."""
    sides = str(resolution).lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) >= 1 for side in sides):
        raise ValueError(f"`--{name}` is {resolution!r}; expected pixels, like 64, or height and width, like 32x64.")
    return int(sides[0]), int(sides[-1])


def check_size(size: tuple[int, int], factor: int, name: str) -> None:
    """Raise `ValueError` unless both sides can be divided by `factor`, as a network does that halves them."""
    if any(side % factor for side in size):
        nearest = "x".join(str(max(1, round(side / factor)) * factor) for side in size)
        raise ValueError(
            f"`--{name}` is {size[0]}x{size[1]}, which this network can't halve often enough; expected multiples of "
            f"{factor}, such as {nearest}, or fewer `--block_out_channels`."
        )


@dataclass(kw_only=True)
class TrainingSettings(Settings):
    """Settings of every training, by the names of diffusers' `train_unconditional.py`."""

    output_dir: Path = flag(help="Checkpoints, samples and results go here.")
    dataset_name: str | None = flag(None, "Data set on the Hub.")
    train_data_dir: Path | None = flag(None, "Folder that build_dataset.py wrote, or of images.")
    resolution: str = flag("64", "Images are cropped and resized to this: 64, or 32x64 for height and width.")
    channels: int | None = flag(None, "1 for grey, 3 for RGB; unless given grey where all images are grey.")
    random_flip: bool = flag(False, "Mirror images at random; not where left and right mean something.")
    random_vertical_flip: bool = flag(False, "Turn images upside down at random.")
    train_batch_size: int = flag(64, "Images per process and micro-batch.")
    gradient_accumulation_steps: int = flag(1, "Micro-batches per optimizer step.")
    dataloader_num_workers: int = flag(0, "Processes that load images.")
    max_train_steps: int = flag(250_000, "Optimizer steps.")
    learning_rate: float = flag(1e-4, "After warm-up.")
    lr_scheduler: LearningRateSchedule = flag("constant", "How the learning rate goes on after warm-up.")
    lr_warmup_steps: int = flag(0, "In optimizer steps.")
    optimizer: Literal["adamw", "sgd"] = flag("adamw", "SGD has momentum 0.9.")
    adam_weight_decay: float = flag(0.0, "Of either optimizer.")
    max_grad_norm: float = flag(1.0, "Clip gradients here; the paper doesn't say.")
    mixed_precision: Literal["no", "fp16", "bf16"] = flag("no", "Of the forward pass.")
    use_ema: bool = flag(True, "Average the weights, with warm-up.")
    ema_max_decay: float = flag(0.9999, "Of the average, after its warm-up.")
    checkpointing_steps: int = flag(1000, "How often to save a checkpoint, in optimizer steps.")
    checkpoints_total_limit: int = flag(2, "How many checkpoints to keep.")
    resume_from_checkpoint: str | None = flag(None, "A checkpoint folder, or 'latest'.")
    seed: int = flag(0, "Of weights, order and noise, each from a stream of its own.")
    report_to: str | None = flag(None, "A tracker of accelerate: tensorboard, wandb, ...")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "train_batch_size", "gradient_accumulation_steps", at_least=1)
        self.resolution = str(self.resolution)
        read_size(self.resolution, "resolution")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"`--channels` is {self.channels}; expected 1 for grey or 3 for RGB.")
        check_numbers(self, "max_train_steps", "checkpointing_steps", "checkpoints_total_limit", at_least=1)
        check_numbers(self, "lr_warmup_steps", "dataloader_num_workers", "adam_weight_decay", at_least=0)
        check_numbers(self, "learning_rate", "max_grad_norm", above=0)
        check_numbers(self, "seed", at_least=0, below=2**32)
        check_numbers(self, "ema_max_decay", at_least=0, below=1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return read_size(self.resolution, "resolution")


@dataclass(kw_only=True)
class PipelineSettings(TrainingSettings):
    """Training that ends in a pipeline: the size of the network, and where the pipeline is published."""

    block_out_channels: list[int] = flag([128, 256, 384, 512], "Width per resolution, from full resolution down.")
    attention_resolutions: list[int] = flag([16, 8], "Sizes of the feature maps with self-attention; may be empty.")
    layers_per_block: int = flag(3, "Residual blocks per resolution.")
    norm_num_groups: int = flag(32, "Of group norms; divides every width.")
    attention_head_dim: int = flag(64, "Channels per head; divides the widths that attend.")
    push_to_hub: bool = flag(False, "Publish the finished pipeline.")
    hub_model_id: str | None = flag(None, "Repository to push to; defaults to the output folder's name.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "layers_per_block", "norm_num_groups", "attention_head_dim", at_least=1)
        if not self.block_out_channels:
            raise ValueError("`--block_out_channels` is empty; expected the width of at least one resolution.")

    @property
    def repo_id(self) -> str:
        """Where to push to."""
        return self.hub_model_id or self.output_dir.resolve().name

    @property
    def network(self) -> dict[str, Any]:
        """The size, as `create_unet` and `NoisyClassifier` take it."""
        names = (
            "block_out_channels",
            "attention_resolutions",
            "layers_per_block",
            "norm_num_groups",
            "attention_head_dim",
        )
        return {name: getattr(self, name) for name in names}
