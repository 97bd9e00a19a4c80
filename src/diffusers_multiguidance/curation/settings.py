"""Settings of build_dataset.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..training.settings import (
    LearningRateSchedule,
    TrainingSettings,
    check_numbers,
    flag,
    read_size,
)
from ..utils.writable import check_attributes


@dataclass(kw_only=True)
class DatasetSettings(TrainingSettings):
    """A source of images, what is kept of it, and the training of the labelers that decide it.

    Raises:
        ValueError: for the first setting that no data set could be made of.
    """

    dataset: Literal["circles", "digits", "faces", "celeba", "objects", "images"] = flag(
        help="celeba and images read --train_data_dir or --dataset_name; objects has coins, or the cut-outs in "
        "--train_data_dir."
    )
    num_images: int = flag(10_000, "How many to render, before filtering.")
    split: str = flag("train", "Of celeba and images.")
    image_column: str = flag("image", "Of images.")
    label_column: str | None = flag(None, "Of images: two values.")
    score_column: str | None = flag(None, "Of images: numbers.")
    num_proc: int | None = flag(None, "Processes to render or read images with.")

    extremes: bool = flag(False, "Keep only the two ends of the attributes.")
    attribute: list[str] | None = flag(
        None, "One or more; an image is kept if it is extreme in all. Of images a name for the label column."
    )
    by: Literal["factor", "labels", "score", "zero_shot"] | None = flag(
        None,
        "Decided by the known factor (unless given: circles, digits, objects), networks that learn the labels (unless "
        "given: faces, celeba, images), a score column, or a CLIP-like model.",
    )
    delta: float = flag(0.2, "Width of each end, as a share of a factor's range.")
    num_extremes: list[int] | None = flag(None, "How many to keep at each end, or low and high.")
    keep_share: float | None = flag(
        None,
        "Without --num_extremes: of all, at most this at each end; unless given 0.12, or 0.085 by labels of fewer "
        "than 10,000 images, as labelers learn less from few.",
    )
    index_file: Path | None = flag(None, "Text file of image numbers that replaces the filter.")
    oversample: bool = flag(False, "Repeat the rarer end.")
    class_names: list[str] | None = flag(
        None, "Of the two ends; unless given as the labels have them, and low and high by a score or prompts."
    )

    labeler_model: str = flag("test_resnet", "Any network of timm.")
    labeler_resolution: str = flag("64", "Images are resized to this for it.")
    random_flip: bool = True
    unlabelled: Literal["ignore", "between"] = flag(
        "ignore",
        "What labelers make of images without a label: nothing, or that they show neither end (say, brown hair).",
    )
    tau_1: float = flag(0.9, "Least probability by the first labeler.")
    ensemble_size: int = flag(5, "How many labelers then have to agree.")
    ensemble_pool: Literal["all", "agreed"] = flag(
        "all", "They learn from all labels, or as in the paper from those that the first labeler agrees with."
    )
    cross_fit: bool = flag(True, "Ask only those that did not learn from the image.")
    tau_2: float = flag(0.9, "Least probability by every labeler of the ensemble.")
    holdout_file: Path | None = flag(None, "CSV: source_index, label (a class, or mild). Sets the taus.")
    compare: bool = flag(False, "With known latents: what slips through every kind of ensemble.")
    eval_batch_size: int = flag(64, "Images at once where labelers don't learn.")
    zero_shot_model: str | None = flag(None, "Checkpoint with image and text encoders, a folder or of the Hub.")
    prompts: list[str] | None = flag(None, "What the low and the high end look like, in words.")

    push_to_hub: bool = flag(False, "Publish the data set.")
    hub_dataset_id: str | None = flag(None, "Repository to push to; defaults to the output folder's name.")

    max_train_steps: int = 800
    learning_rate: float = 3e-3
    lr_scheduler: LearningRateSchedule = "cosine"
    lr_warmup_steps: int = 80
    adam_weight_decay: float = 0.05
    use_ema: bool = False
    checkpointing_steps: int = 200
    checkpoints_total_limit: int = 1
    resume_from_checkpoint: str | None = "latest"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labeler_resolution = str(self.labeler_resolution)
        read_size(self.labeler_resolution, "labeler_resolution")
        for name in ("label_column", "score_column"):
            check_attributes([getattr(self, name)] if getattr(self, name) is not None else [], name)
        check_attributes(self.attribute or [], "attribute")
        height, width = self.size
        if min(height, width) < 8:
            raise ValueError(f"`--resolution` is {self.resolution}; expected at least 8 pixels.")
        if height != width and self.dataset in ("circles", "digits", "faces", "objects"):
            raise ValueError(f"`--resolution` is {self.resolution}; expected a square for `--dataset {self.dataset}`.")
        if self.channels is not None and self.dataset != "images":
            raise ValueError(f"`--channels` is {self.channels}; expected it with `--dataset images` only.")
        counts = ("num_images", "ensemble_size", "eval_batch_size", "num_proc")
        check_numbers(self, *counts, at_least=1)
        check_numbers(self, "tau_1", "tau_2", at_least=0.5, below=1)
        check_numbers(self, "keep_share", at_least=0, below=0.5)
        check_numbers(self, "delta", above=0, below=0.5)
        if self.cross_fit and self.ensemble_size < 2:
            raise ValueError(f"`--ensemble_size` is {self.ensemble_size}; expected at least 2 with `--cross_fit`.")
        if self.num_extremes is not None and not (len(self.num_extremes) in (1, 2) and min(self.num_extremes) >= 1):
            raise ValueError(f"`--num_extremes` is {self.num_extremes}; expected one or two numbers of at least 1.")
        for name in ("class_names", "prompts"):
            words = getattr(self, name)
            if words is not None and len(words) != 2:
                raise ValueError(f"`--{name}` is {words}; expected two, for the low and the high end.")
        if self.class_names and self.dataset != "images" and self.decided_by in ("factor", "labels"):
            raise ValueError(f"`--class_names` is {self.class_names}, but {self.dataset} has names; expected none.")
        if self.extremes and not self.attribute and self.dataset != "images":
            raise ValueError("`--attribute` is missing; expected the attribute whose `--extremes` to keep.")
        for name in ("index_file", "holdout_file"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"`--{name}` is {str(path)!r}; expected a file that exists.")
        given = [name for name in ("train_data_dir", "dataset_name") if getattr(self, name) is not None]
        if self.dataset in ("celeba", "images") and len(given) != 1:
            raise ValueError(
                f"`--dataset {self.dataset}` has {given}; expected `--train_data_dir` or `--dataset_name`."
            )
        if self.by == "zero_shot" and not (self.zero_shot_model and self.prompts):
            raise ValueError("`--by zero_shot` is incomplete; expected `--zero_shot_model` and `--prompts` as well.")
        if self.decided_by in ("score", "zero_shot") and self.attribute and len(self.attribute) > 1:
            raise ValueError(f"`--attribute` is {self.attribute}; expected one with scores or prompts.")

    def share_of(self, num_images: int) -> float:
        """How much of so many images to keep at each end; see docs/lab-notebook.md, The filter."""
        few = num_images < 10_000 and self.decided_by == "labels"
        return (0.085 if few else 0.12) if self.keep_share is None else self.keep_share

    @property
    def repo_id(self) -> str:
        """Where to push to."""
        return self.hub_dataset_id or self.output_dir.resolve().name

    @property
    def decided_by(self) -> str:
        """What `by` says, or else what the source offers."""
        known = self.dataset in ("circles", "digits", "objects")
        return self.by or ("score" if self.score_column else "factor" if known else "labels")


def check_replaceable(output_dir: Path) -> None:
    """Raise `ValueError` where something else than a data set is in the way."""
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (output_dir / "dataset_info.json").exists():
        raise ValueError(f"`--output_dir` {output_dir} exists; expected a data set to replace, or a free name.")
