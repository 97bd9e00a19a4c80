"""Train the classifiers of noisy images that guide, and complete the pipeline that train_unet.py wrote.

    accelerate launch training/train_classifier.py --recipe training/recipes/circles.yaml

Writes each classifier to `<output_dir>/member-<k>` and the pipeline with all of them to `<output_dir>/pipeline`. An
interrupted run goes on where it was with `--resume_from_checkpoint latest`, past the members that are done.
Classifiers of other attributes that the pipeline has already stay in it.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import ClassLabel

from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.utils.files import replace_folder
from diffusers_multiguidance.guidance import check_guidance_interval
from diffusers_multiguidance.hub.card import unmeasured_facts, write_pipeline_card
from diffusers_multiguidance.hub.publish import find_token, publish
from diffusers_multiguidance.models import NoisyClassifier, NoisyClassifierSet
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline
from diffusers_multiguidance.pipelines.multiguidance_ddpm import SAMPLERS
from diffusers_multiguidance.training.recipe import run_script
from diffusers_multiguidance.training.trainer import (
    Batch,
    add_training_arguments,
    check_training_arguments,
    create_accelerator,
    image_channels,
    load_training_set,
    train,
    with_tensors,
    write_record,
)


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.set_defaults(learning_rate=3e-4, max_train_steps=150_000, use_ema=False)
    parser.add_argument("--push_to_hub", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--hub_model_id", help="Repository to push to; defaults to the output folder's name.")
    parser.add_argument("--pipeline", type=Path, help="Pipeline folder that train_unet.py wrote.")
    parser.add_argument("--attributes", nargs="+", help="Label columns to classify.")
    parser.add_argument("--num_classifiers", type=int, default=1, help="Members of the set, seeds --seed and up.")
    parser.add_argument("--label_smoothing", type=float, default=0.0)
    parser.add_argument(
        "--soft_labels",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Learn factor_<attribute> as the probability of the second class; for what generate.py writes.",
    )
    parser.add_argument(
        "--teacher", type=Path, help="Pipeline folder with a set of classifiers whose log-odds one network learns."
    )
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[128, 256, 384, 512])
    parser.add_argument("--attention_resolutions", type=int, nargs="*", default=[32, 16, 8])
    parser.add_argument("--layers_per_block", type=int, default=2)
    parser.add_argument("--norm_num_groups", type=int, default=32)
    parser.add_argument("--attention_head_dim", type=int, default=64)
    parser.add_argument("--guidance_scale", type=float, default=60.0, help="Default of the finished pipeline.")
    parser.add_argument("--guidance_interval", type=float, nargs=2, default=[0.0, 1.0], help="Default, likewise.")
    parser.add_argument("--sampler", default="ddpm", help="Default, likewise.")
    parser.add_argument("--ddpm_num_inference_steps", type=int, help="Default, likewise; the denoiser's unless given.")
    return parser


def main(args: argparse.Namespace) -> None:
    check_training_arguments(args)
    if args.push_to_hub:
        find_token()  # hours later would be late
    if args.pipeline is None or not args.attributes:
        raise ValueError(
            "`--pipeline` and `--attributes` are needed; expected a folder and the names of label columns."
        )
    if args.num_classifiers < 1:
        raise ValueError(f"`--num_classifiers` is {args.num_classifiers}; expected at least 1.")
    if not 0 <= args.label_smoothing < 1:
        raise ValueError(f"`--label_smoothing` is {args.label_smoothing}; expected a number from 0 to below 1.")
    if args.layers_per_block < 1:
        raise ValueError(f"`--layers_per_block` is {args.layers_per_block}; expected at least 1.")
    if not 0 <= args.guidance_scale < math.inf:
        raise ValueError(f"`--guidance_scale` is {args.guidance_scale}; expected a number of at least 0.")
    check_guidance_interval(args.guidance_interval)
    if args.sampler not in SAMPLERS:
        raise ValueError(f"`--sampler` is {args.sampler!r}; expected one of {list(SAMPLERS)}.")
    if args.teacher is not None and (args.soft_labels or args.label_smoothing):
        raise ValueError(
            "`--teacher` is given with `--soft_labels` or `--label_smoothing`; expected one way to teach."
        )
    if args.resume_from_checkpoint not in (None, "latest"):
        raise ValueError(f"`--resume_from_checkpoint` is {args.resume_from_checkpoint!r}; expected 'latest'.")
    done = sorted(args.output_dir.glob("member-*"))
    if done and args.resume_from_checkpoint is None:
        raise ValueError(
            f"`--output_dir` {args.output_dir} holds {done[0].name} of an earlier run; expected another folder, or "
            "`--resume_from_checkpoint latest`."
        )
    unguided = MultiGuidanceDDPMPipeline.from_pretrained(args.pipeline)
    diffusion = GaussianDiffusion.from_scheduler(unguided.scheduler)
    dataset = load_training_set(args)
    size, channels = unguided.unet.config.sample_size, unguided.unet.config.in_channels
    if (args.resolution, image_channels(dataset)) != (size, channels):
        raise ValueError(
            f"`--resolution` is {args.resolution} with {image_channels(dataset)} channels; expected those of the "
            f"pipeline, {size} with {channels}."
        )
    attributes = {}
    for attribute in args.attributes:
        feature = dataset.features.get(attribute)
        if not isinstance(feature, ClassLabel):
            labels = [name for name, kind in dataset.features.items() if isinstance(kind, ClassLabel)]
            raise ValueError(f"`--attributes` names {attribute!r}; expected label columns of the data set, {labels}.")
        attributes[attribute] = feature.names
    columns = {name: f"factor_{name}" if args.soft_labels else name for name in attributes}
    if args.soft_labels:
        for attribute, column in columns.items():
            factor = np.asarray(dataset[column] if column in dataset.column_names else [np.nan])
            if len(attributes[attribute]) != 2 or not ((factor >= 0) & (factor <= 1)).all():
                raise ValueError(
                    f"`--soft_labels` finds no strength of '{attribute}'; expected two classes, and in {column!r} "
                    "numbers from 0 to 1."
                )

    accelerator = create_accelerator(args)
    teacher = None
    if args.teacher is not None:
        teacher = MultiGuidanceDDPMPipeline.from_pretrained(args.teacher).classifiers
        known = {} if teacher is None else {name: list(classes) for name, classes in teacher.attributes.items()}
        if any(known.get(name) != classes for name, classes in attributes.items()):
            raise ValueError(f"`--teacher` {args.teacher} knows {known}; expected {attributes} among that.")
        teacher.to(accelerator.device)

    def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        images = batch["image"]
        index = torch.randint(len(diffusion), (len(images),))
        x_t = diffusion.add_noise(images, torch.randn_like(images), index)
        timesteps = diffusion.timesteps[index].to(images.device)
        logits = model(x_t, timesteps).logits
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(x_t, timesteps).logits
        logs = {"loss": torch.zeros((), device=images.device)}
        for name, column in columns.items():
            values, output = batch[column], logits[name].float()
            # Cross-entropy with z as the second class's probability is least where p is the mean of z given x_t.
            target = torch.stack([1 - values, values], dim=1).float() if args.soft_labels else values
            if teacher is None:
                loss = F.cross_entropy(output, target, label_smoothing=args.label_smoothing)
            else:
                # Logits, not probabilities: guidance follows their slope where the teacher is sure, too.
                loss = F.smooth_l1_loss(output.log_softmax(dim=1), taught[name].log_softmax(dim=1))
            logs["loss"] = logs["loss"] + loss
            label = (values > 0.5).long() if args.soft_labels else values
            logs[f"accuracy_{name}"] = (output.argmax(dim=1) == label).float().mean()
        return logs

    members = []
    for number in range(args.num_classifiers):
        output_dir = args.output_dir / f"member-{number}"
        if args.resume_from_checkpoint and (output_dir / "config.json").exists():
            members.append(NoisyClassifier.from_pretrained(output_dir))
            continue
        torch.manual_seed(args.seed + number)
        classifier = NoisyClassifier(
            attributes,
            args.resolution,
            channels,
            args.block_out_channels,
            args.attention_resolutions,
            args.layers_per_block,
            args.norm_num_groups,
            args.attention_head_dim,
        )
        classifier, record = train(
            accelerator,
            classifier,
            with_tensors(dataset, args.resolution, list(columns.values())),
            compute_loss,
            args,
            output_dir,
            f"classifier {number + 1}/{args.num_classifiers}",
            args.seed + number,
        )
        members.append(classifier.cpu().to(memory_format=torch.contiguous_format))
        if accelerator.is_main_process:
            with replace_folder(output_dir) as folder:
                members[-1].save_pretrained(folder)
                write_record(folder, record, args)
        accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        there = [] if unguided.classifiers is None else unguided.classifiers.members
        others = [member for member in there if not set(member.config["attributes"]) & set(args.attributes)]
        pipeline = MultiGuidanceDDPMPipeline(
            unguided.unet,
            NoisyClassifierSet.from_members([*others, *members]),
            unguided.scheduler,
            args.ddpm_num_inference_steps or unguided.config["default_num_inference_steps"],
            args.guidance_scale,
            tuple(args.guidance_interval),
            args.sampler,
        )
        with replace_folder(args.output_dir / "pipeline") as folder:
            pipeline.save_pretrained(folder)
            write_pipeline_card(folder, card_facts(args), args.hub_model_id or str(args.output_dir / "pipeline"))
        if args.push_to_hub:
            publish(args.output_dir / "pipeline", args.hub_model_id or args.output_dir.name)
    accelerator.end_training()


def card_facts(args: argparse.Namespace) -> dict[str, Any]:
    command = shlex.join(["accelerate", "launch", "training/train_classifier.py", *sys.argv[1:]])
    denoiser = f"Denoiser: from `{args.pipeline}`, which `training/train_unet.py` wrote."
    classifiers = (
        f"Classifiers: {args.num_classifiers} with {args.max_train_steps} steps of {args.train_batch_size} images for "
        f"each process, seeds from {args.seed} (`{command}`)."
    )
    title = args.output_dir.resolve().name
    return {**unmeasured_facts(title, args.attributes), "training": [denoiser, classifiers]}


if __name__ == "__main__":
    run_script(main, create_parser(), section="train_classifier")
