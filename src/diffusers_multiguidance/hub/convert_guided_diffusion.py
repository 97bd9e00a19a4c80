"""Checkpoints of guided-diffusion (Dhariwal & Nichol 2021) as a pipeline: a `UNetModel`, and an `EncoderUNetModel`.

Weights get other names, and those of attention another order; none is changed. What their shapes tell is read from
them. The rest has to be said, in the words of guided-diffusion's own flags.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from ..diffusion import GaussianDiffusion
from ..models.heads import set_num_heads
from ..models.noisy_classifier import NoisyClassifier, NoisyClassifierSet
from ..models.unet import create_unet
from ..utils.files import replace_folder
from ..utils.writable import check_attributes
from .card import unmeasured_facts, write_pipeline_card

State = dict[str, torch.Tensor]

NETWORKS = {"denoiser": "UNetModel", "classifier": "EncoderUNetModel"}
GROUPS = 32  # of each of their group norms
# Their names, and ours: of modules, and of what is in a residual block, in attention and in a change of resolution.
MODULES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "proj_out": "to_out.0",
    "op": "conv",
    "conv": "conv",
}
PLACE = r"(?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+"


@dataclass
class Layout:
    """What the weights tell of how a network is built."""

    channels: int
    widths: list[int]  # by level, from full resolution down
    attends: list[bool]  # by level
    layers_per_block: int
    options: dict[str, str]  # of `create_unet` and `NoisyClassifier`, by name

    @property
    def attending_widths(self) -> list[int]:
        """The middle, of the last width, always attends."""
        levels = zip(self.widths, self.attends, strict=True)
        return sorted({self.widths[-1], *(width for width, attends in levels if attends)})

    def attention_resolutions(self, image_size: int) -> tuple[int, ...]:
        return tuple(image_size // 2**level for level, attends in enumerate(self.attends) if attends)


def convert(
    denoiser: Path,
    out: Path,
    classifier: Path | None = None,
    attribute: str = "label",
    classes: Mapping[str, int] | None = None,
    image_size: int = 64,
    num_head_channels: int = 64,
    num_heads: int | None = None,
    new_attention_order: bool = False,
    classifier_num_head_channels: int = 64,
    classifier_new_attention_order: bool = False,
    noise_schedule: str = "linear",
    diffusion_steps: int = 1000,
    rescale_timesteps: bool = False,
) -> None:
    """Write the folder of a pipeline, with its card, whose networks compute what these checkpoints do.

    Args:
        denoiser: state dict of a `UNetModel`, .pt or .safetensors; weights become float32.
        out: the folder; what an earlier conversion wrote there gives way.
        classifier: state dict of an `EncoderUNetModel` with attention pooling.
        attribute: what the classifier tells apart.
        classes: which of its outputs to keep, by the name of the class, such as `{"hen": 8, "jay": 17}`; the first is
            the low end. None keeps all, named by their numbers.
        image_size: in pixels.
        num_head_channels: channels of each attention head of the denoiser; not looked at with `num_heads`.
        num_heads: attention heads of the denoiser, where their number is the same at every width.
        new_attention_order: the denoiser's `use_new_attention_order`.
        classifier_num_head_channels: channels of each attention head of the classifier.
        classifier_new_attention_order: the classifier's `use_new_attention_order`.
        noise_schedule: "linear" or "cosine".
        diffusion_steps: steps T of training.
        rescale_timesteps: the networks were told the steps as if there were 1000 of them. Those without a whole number
            are left out, so that the pipeline has 1000.

    Raises:
        ValueError: for a checkpoint that can't be read, is of another network or one that a pipeline can't represent,
            and for arguments that its weights contradict, before anything is written.
    """
    if classes is not None and classifier is None:
        raise ValueError("`classes` are given and no `classifier`; expected both, or neither.")
    schedule = read_schedule(noise_schedule, diffusion_steps, rescale_timesteps)
    unet = convert_denoiser(
        read_state(denoiser, "denoiser"), image_size, num_head_channels, num_heads, new_attention_order
    )
    learned = unet.config.out_channels > unet.config.in_channels
    scheduler = DDPMScheduler(
        **schedule, variance_type="learned_range" if learned else "fixed_large", timestep_spacing="linspace"
    )
    components: dict[str, Any] = {"unet": unet, "scheduler": scheduler}
    index: dict[str, Any] = {
        "_class_name": ["pipeline", "MultiGuidanceDDPMPipeline"],
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    facts = unmeasured_facts(out.resolve().name, [])
    facts["summary"] = "Converted from checkpoints of guided-diffusion; the weights are theirs."
    facts["training"] = [f"The denoiser, `{denoiser.name}`, was trained elsewhere."]
    if classifier is not None:
        network = convert_classifier(
            read_state(classifier, "classifier"),
            image_size,
            attribute,
            classes,
            classifier_num_head_channels,
            classifier_new_attention_order,
        )
        if network.config.in_channels != unet.config.in_channels:
            raise ValueError(
                f"`classifier` takes {network.config.in_channels} channels; expected those of the denoiser, "
                f"{unet.config.in_channels}."
            )
        components["classifiers"] = NoisyClassifierSet.from_members([network])
        index["classifiers"] = ["noisy_classifier", "NoisyClassifierSet"]
        # The paper's, 30 for each of two classes.
        steps = min(250, scheduler.config.num_train_timesteps)
        index["sampling_defaults"] = {"ddpm": {"num_inference_steps": steps, "guidance_scale": 60.0}}
        facts["training"].append(f"So was the classifier, `{classifier.name}`.")
        kept = network.attributes[attribute]
        facts["target"] = {attribute: 0.5 if len(kept) == 2 else {kept[0]: 0.5, kept[-1]: 0.5}}
    with replace_folder(out) as folder:
        for name, component in components.items():
            component.save_pretrained(folder / name)
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        write_pipeline_card(folder, facts, out.as_posix())


def read_state(path: Path, name: str) -> State:
    """The state dict in a file, in float32; no code that lies there is run.

    Args:
        name: of the argument, for the error.

    Raises:
        ValueError: for a file that is missing, broken, or holds anything else.
    """
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"`{name}` {str(path)!r} can't be read ({error}); expected a checkpoint.") from error
    except Exception as error:  # a broken file may raise about anything
        raise ValueError(
            f"`{name}` {str(path)!r} is broken or has code in it ({type(error).__name__}); expected a state dict, "
            "tensors alone, as .pt or .safetensors."
        ) from error
    if not (isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())):
        raise ValueError(f"`{name}` {str(path)!r} is no state dict; expected tensors by name, and nothing else.")
    return {str(key): value.float() for key, value in state.items()}


def read_schedule(noise_schedule: str, diffusion_steps: int, rescale_timesteps: bool) -> dict[str, Any]:
    """The settings of a scheduler for one of guided-diffusion's noise schedules; see `convert`.

    Raises:
        ValueError: for one that there can't be.
    """
    if noise_schedule not in ("linear", "cosine"):
        raise ValueError(f"`noise_schedule` is {noise_schedule!r}; expected 'linear' or 'cosine'.")
    if diffusion_steps <= 20:  # there the linear schedule has betas above 1
        raise ValueError(f"`diffusion_steps` is {diffusion_steps}; expected more than 20.")
    schedule = {
        "num_train_timesteps": diffusion_steps,
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[noise_schedule],
        "beta_start": 0.1 / diffusion_steps,
        "beta_end": 20 / diffusion_steps,
    }
    if not rescale_timesteps or diffusion_steps == 1000:
        return schedule
    if diffusion_steps % 1000:
        raise ValueError(
            f"`diffusion_steps` is {diffusion_steps} with `rescale_timesteps`; expected a multiple of 1000."
        )
    kept = GaussianDiffusion.from_scheduler(DDPMScheduler(**schedule), 1000, "leading")
    return {"num_train_timesteps": 1000, "trained_betas": kept.betas.tolist()}


def convert_denoiser(
    state: State,
    image_size: int,
    num_head_channels: int = 64,
    num_heads: int | None = None,
    new_attention_order: bool = False,
) -> UNet2DModel:
    """A `UNet2DModel` that computes what the `UNetModel` with these weights does; see `convert`."""
    upsampler = re.compile(r"output_blocks\.(\d+)\.[1-9]\.(conv|in_layers\.2)\.weight")
    layout = read_layout(state, "denoiser", 1 + sum(upsampler.fullmatch(key) is not None for key in state), image_size)
    (conv_out,) = find(state, "denoiser", "out.2.weight")
    if layout.channels not in (1, 3) or len(conv_out) not in (layout.channels, 2 * layout.channels):
        raise ValueError(
            f"`denoiser` takes {layout.channels} channels and gives {len(conv_out)}; expected it to take 1 or 3, and "
            "to give as many or, with a learned variance, twice as many."
        )
    widths = layout.attending_widths
    name, number = ("num_head_channels", num_head_channels) if num_heads is None else ("num_heads", num_heads)
    check_divides(name, number, widths)
    heads = {width: num_heads or width // num_head_channels for width in widths}
    alike = len({width // heads[width] for width in widths}) == 1
    unet = create_unet(
        sample_size=image_size,
        channels=layout.channels,
        block_out_channels=layout.widths,
        attention_resolutions=layout.attention_resolutions(image_size),
        layers_per_block=layout.layers_per_block,
        norm_num_groups=GROUPS,
        attention_head_dim=widths[0] // heads[widths[0]] if alike else GROUPS,
        learned_variance=len(conv_out) > layout.channels,
        num_class_embeds=len(state["label_emb.weight"]) if "label_emb.weight" in state else None,
        **layout.options,
    )
    if num_heads is not None and not alike:
        set_num_heads(unet, num_heads)
    modules = {**module_names(layout), "out.0": "conv_norm_out", "out.2": "conv_out"}
    load_weights(unet, rename(state, "denoiser", modules, heads, new_attention_order), "denoiser")
    return unet.eval()


def convert_classifier(
    state: State,
    image_size: int,
    attribute: str = "label",
    classes: Mapping[str, int] | None = None,
    num_head_channels: int = 64,
    new_attention_order: bool = False,
) -> NoisyClassifier:
    """A `NoisyClassifier` that computes what the `EncoderUNetModel` with these weights does; see `convert`."""
    pool = {key: tensor for key, tensor in state.items() if key.startswith("out.2.")}
    if "out.2.positional_embedding" not in pool:
        raise ValueError(
            "`classifier` has no 'out.2.positional_embedding'; expected an EncoderUNetModel whose pool is 'attention'."
        )
    pooled_size = math.isqrt(pool["out.2.positional_embedding"].shape[-1] - 1)
    num_levels = max(1, image_size // max(1, pooled_size)).bit_length()
    if image_size != pooled_size * 2 ** (num_levels - 1):
        raise ValueError(
            f"`image_size` is {image_size}, and the classifier pools {pooled_size}x{pooled_size} features; expected "
            "that size, or it doubled any number of times."
        )
    layout = read_layout(state, "classifier", num_levels, image_size)
    check_divides("classifier_num_head_channels", num_head_channels, layout.attending_widths)
    names = [f"out.2.{name}.{kind}" for name in ("qkv_proj", "c_proj") for kind in ("weight", "bias")]
    *qkv, weight, bias = find(state, "classifier", *names)
    classes = {str(number): number for number in range(len(weight))} if classes is None else classes
    check_classes(attribute, classes, len(weight))
    network = NoisyClassifier(
        attributes={attribute: list(classes)},
        sample_size=image_size,
        in_channels=layout.channels,
        block_out_channels=tuple(layout.widths),
        attention_resolutions=layout.attention_resolutions(image_size),
        layers_per_block=layout.layers_per_block,
        norm_num_groups=GROUPS,
        attention_head_dim=num_head_channels,
        **layout.options,
    )
    trunk = {key: tensor for key, tensor in state.items() if key not in pool}
    heads = {width: width // num_head_channels for width in layout.attending_widths}
    modules = {**module_names(layout), "out.0": "norm_out"}
    weights = rename(trunk, "classifier", modules, heads, new_attention_order)
    for kind, joint in zip(("weight", "bias"), qkv, strict=True):  # whose order is the new one, always
        for name, part in zip(("query", "key", "value"), joint.squeeze(-1).chunk(3), strict=True):
            weights[f"pool.{name}.{kind}"] = part
    outputs = list(classes.values())
    weights["pool.out.weight"], weights["pool.out.bias"] = weight.squeeze(-1)[outputs], bias[outputs]
    weights["pool.positional_embedding"] = pool["out.2.positional_embedding"].T
    load_weights(network, weights, "classifier")
    return network.eval()


def find(state: State, name: str, *keys: str) -> list[torch.Tensor]:
    """The weights of these names, or a `ValueError` that says which one is missing."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(
            f"`{name}` has no {missing[0]!r}; expected the state dict of a {NETWORKS[name]} of guided-diffusion."
        )
    return [state[key] for key in keys]


def check_divides(name: str, number: int, widths: list[int]) -> None:
    if number < 1 or any(width % number for width in widths):
        raise ValueError(f"`{name}` is {number}; expected a divisor of the widths that attend, {widths}.")


def check_classes(attribute: str, classes: Mapping[str, int], num_outputs: int) -> None:
    check_attributes([attribute], "attribute")
    if len(classes) < 2 or len({*classes.values()}) < len(classes):
        raise ValueError(f"`classes` are {dict(classes)}; expected at least two, each another output.")
    for name, output in classes.items():
        if not 0 <= output < num_outputs:
            raise ValueError(
                f"`classes` has {name!r} as output {output}; expected one of the classifier's, 0 to {num_outputs - 1}."
            )


def read_layout(state: State, name: str, num_levels: int, image_size: int) -> Layout:
    """What the weights of the half that goes down tell.

    Raises:
        ValueError: for weights that are not of such a network.
    """
    if image_size < 1 or image_size % 2 ** (num_levels - 1):
        raise ValueError(
            f"`image_size` is {image_size}; expected a multiple of {2 ** (num_levels - 1)}, as the {name} halves it "
            f"{num_levels - 1} times."
        )
    time_embed, conv_in = find(state, name, "time_embed.0.weight", "input_blocks.0.0.weight")
    num_blocks = len({key.split(".")[1] for key in state if key.startswith("input_blocks.")})
    # The first convolution; and at each level the residual blocks, and the change to the next one.
    layers_per_block = num_blocks // num_levels - 1
    if layers_per_block < 1 or num_blocks % num_levels:
        raise ValueError(
            f"`{name}` has {num_blocks} input blocks at {num_levels} levels; expected as many at each, which for a "
            "classifier depends on the `image_size`."
        )
    firsts = [f"input_blocks.{1 + level * (layers_per_block + 1)}" for level in range(num_levels)]
    widths = [len(weight) for weight in find(state, name, *(f"{first}.0.in_layers.2.weight" for first in firsts))]
    if time_embed.shape[-1] != widths[0]:
        raise ValueError(
            f"`{name}` has {time_embed.shape[-1]} channels for the timestep and {widths[0]} at its first level; "
            "expected a `channel_mult` that starts with 1, which is all that a UNet2DModel can represent."
        )
    (embedding,) = find(state, name, "input_blocks.1.0.emb_layers.1.weight")
    return Layout(
        conv_in.shape[1],
        widths,
        [f"{first}.1.qkv.weight" in state for first in firsts],
        layers_per_block,
        {
            "resample_type": "conv" if f"input_blocks.{layers_per_block + 1}.0.op.weight" in state else "resnet",
            "resnet_time_scale_shift": "scale_shift" if len(embedding) == 2 * widths[0] else "default",
        },
    )


def module_names(layout: Layout) -> dict[str, str]:
    """Our names of blocks by theirs; of the half that goes up, too."""
    names, layers, levels = dict(MODULES), layout.layers_per_block, len(layout.widths)
    for level in range(levels):
        for layer in range(layers + 1):
            down, up = 1 + level * (layers + 1) + layer, level * (layers + 1) + layer
            names[f"input_blocks.{down}.0"] = f"down_blocks.{level}.resnets.{layer}"
            names[f"input_blocks.{down}.1"] = f"down_blocks.{level}.attentions.{layer}"
            names[f"output_blocks.{up}.0"] = f"up_blocks.{level}.resnets.{layer}"
            names[f"output_blocks.{up}.1"] = f"up_blocks.{level}.attentions.{layer}"
        # What would be one block more goes to the next level down; the last block of a level also goes up.
        names[f"input_blocks.{down}.0"] = f"down_blocks.{level}.downsamplers.0"
        after_attention = 2 if layout.attends[levels - 1 - level] else 1
        names[f"output_blocks.{up}.{after_attention}"] = f"up_blocks.{level}.upsamplers.0"
    return names


def rename(
    state: State, name: str, modules: Mapping[str, str], heads: Mapping[int, int], new_attention_order: bool
) -> State:
    """The weights by our names.

    Args:
        modules: our names of modules by theirs.
        heads: number of attention heads by width.

    Raises:
        ValueError: for a weight that has no place here.
    """
    renamed = {}
    for key, tensor in state.items():
        within = re.fullmatch(rf"({PLACE})\.(\D.*)\.(weight|bias)", key)
        module, part, kind = within.groups() if within else (key.rpartition(".")[0], "", key.rpartition(".")[2])
        place = modules.get(module)
        if place is not None and part == "qkv" and len(tensor) // 3 in heads:
            if not new_attention_order:  # each head's query, key and value together, head by head
                tensor = tensor.unflatten(0, (heads[len(tensor) // 3], 3, -1)).transpose(0, 1).flatten(0, 2)
            for new_part, third in zip(("to_q", "to_k", "to_v"), tensor.squeeze(-1).chunk(3), strict=True):
                renamed[f"{place}.{new_part}.{kind}"] = third
        elif place is not None and part in PARTS:
            # Attention's convolution of size 1 is a linear layer here.
            renamed[f"{place}.{PARTS[part]}.{kind}"] = tensor.squeeze(-1) if part == "proj_out" else tensor
        elif place is not None and not part:
            renamed[f"{place}.{kind}"] = tensor
        else:
            raise ValueError(f"`{name}` has a {key!r}; expected a {NETWORKS[name]} whose levels are built alike.")
    return renamed


def load_weights(network: Any, weights: State, name: str) -> None:
    """Give a network these weights; a `ValueError` where they are not exactly those that it has."""
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    for key in {**wanted, **found}:
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"`{name}` has {found.get(key, 'nothing')} where a {type(network).__name__} of its levels has "
                f"{wanted.get(key, 'nothing')}, `{key}`; expected a {NETWORKS[name]} whose levels are built alike."
            )
    network.load_state_dict(weights)
