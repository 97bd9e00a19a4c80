"""The loop, checkpoints and resume that the training scripts share.

Every micro-batch starts from a seed that only depends on the run's seed, the step and the process, and the order of
the images only on the seed: a run that was interrupted draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from datasets import Dataset, load_dataset, load_from_disk
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Sampler, Subset
from tqdm.auto import tqdm

from ..utils.seeds import stream_seed

Batch = dict[str, torch.Tensor]


def add_training_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flags of diffusers' `train_unconditional.py`, by the same names."""
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--dataset_name", help="Data set on the Hub.")
    parser.add_argument("--train_data_dir", type=Path, help="Folder that build_dataset.py wrote, or of images.")
    parser.add_argument("--output_dir", type=Path, help="Checkpoints, samples and results go here.")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--train_batch_size", type=int, default=64, help="Images per process and micro-batch.")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--dataloader_num_workers", type=int, default=0)
    parser.add_argument("--max_train_steps", type=int, default=250_000, help="Optimizer steps.")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    schedules = [schedule.value for schedule in SchedulerType if schedule != SchedulerType.PIECEWISE_CONSTANT]
    parser.add_argument("--lr_scheduler", choices=schedules, default="constant")
    parser.add_argument("--lr_warmup_steps", type=int, default=0, help="In optimizer steps.")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw", help="SGD has momentum 0.9.")
    parser.add_argument("--adam_weight_decay", type=float, default=0.0)
    parser.add_argument("--max_grad_norm", type=float, default=1.0, help="Clip gradients here; the paper doesn't say.")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--use_ema", action=flag, default=True, help="Average the weights, with warm-up.")
    parser.add_argument("--ema_max_decay", type=float, default=0.9999)
    parser.add_argument("--checkpointing_steps", type=int, default=1000)
    parser.add_argument("--checkpoints_total_limit", type=int, default=2)
    parser.add_argument("--resume_from_checkpoint", help="A checkpoint folder, or 'latest'.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report_to", help="A tracker of accelerate: tensorboard, wandb, ...")


def check_training_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for the first flag that no run could be made of."""
    if args.output_dir is None:
        raise ValueError("`--output_dir` is missing; expected a folder.")
    for name in (
        "resolution",
        "train_batch_size",
        "gradient_accumulation_steps",
        "max_train_steps",
        "checkpointing_steps",
        "checkpoints_total_limit",
    ):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; expected at least 1.")
    for name in ("lr_warmup_steps", "dataloader_num_workers", "seed", "adam_weight_decay"):
        if getattr(args, name) < 0:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; expected at least 0.")
    for name in ("learning_rate", "max_grad_norm"):
        if not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; expected a number above 0.")
    if args.seed >= 2**32:
        raise ValueError(f"`--seed` is {args.seed}; expected a number below 2**32.")
    if not 0 <= args.ema_max_decay < 1:
        raise ValueError(f"`--ema_max_decay` is {args.ema_max_decay}; expected a number from 0 to below 1.")


def load_training_set(args: argparse.Namespace) -> Dataset:
    """The data set that `--dataset_name` or `--train_data_dir` names."""
    if (args.dataset_name is None) == (args.train_data_dir is None):
        raise ValueError("`--dataset_name` and `--train_data_dir`: expected exactly one of them.")
    if args.dataset_name is not None:
        dataset = load_dataset(args.dataset_name, split="train")
    elif not args.train_data_dir.is_dir():
        raise ValueError(f"`--train_data_dir` is {str(args.train_data_dir)!r}; expected a folder that exists.")
    elif (args.train_data_dir / "dataset_info.json").exists():
        dataset = load_from_disk(args.train_data_dir)
    elif (args.train_data_dir / "dataset_dict.json").exists():
        dataset = load_from_disk(args.train_data_dir)["train"]
    else:
        dataset = load_dataset("imagefolder", data_dir=str(args.train_data_dir), split="train")
    if "image" not in dataset.column_names:
        raise ValueError(f"the data set has columns {dataset.column_names}; expected one named 'image'.")
    return dataset


def image_channels(dataset: Dataset) -> int:
    """1 for a data set of grey images, else 3."""
    return 1 if dataset[0]["image"].mode in ("1", "L") else 3


def fit_image(image: Image.Image, resolution: int, channels: int) -> Image.Image:
    """Centre-crop and resize to a square of `resolution` pixels, grey or RGB."""
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size == (resolution, resolution):
        return image
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def to_tensors(images: list[Image.Image], resolution: int, channels: int) -> torch.Tensor:
    """`fit_image` of each as (B, C, resolution, resolution), float32 in [-1, 1]."""
    pixels = np.stack([np.asarray(fit_image(image, resolution, channels)) for image in images])
    pixels = pixels.reshape(len(images), resolution, resolution, channels)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def with_tensors(dataset: Dataset, resolution: int, label_columns: list[str]) -> Dataset:
    """`dataset` giving `image` tensors and int64 labels."""
    channels = image_channels(dataset)

    def transform(rows: dict[str, list[Any]]) -> dict[str, Any]:
        images = to_tensors(rows["image"], resolution, channels)
        return {"image": images, **{name: rows[name] for name in label_columns}}

    return dataset.select_columns(["image", *label_columns]).with_transform(transform)


def random_flip(images: torch.Tensor) -> torch.Tensor:
    """Mirror each image of (B, C, H, W) with a probability of one half."""
    flip = (torch.rand(len(images)) < 0.5).to(images.device)
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


class RunSampler(Sampler[int]):
    """Image numbers of a whole run, epoch after epoch in shuffled order, from number `start` up to `stop`."""

    def __init__(self, num_images: int, seed: int, start: int, stop: int) -> None:
        self.num_images, self.seed, self.start, self.stop = num_images, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        epoch, order = -1, torch.empty(0)
        for number in range(self.start, self.stop):
            if number // self.num_images != epoch:
                epoch = number // self.num_images
                generator = torch.Generator().manual_seed(stream_seed(self.seed, epoch))
                order = torch.randperm(self.num_images, generator=generator)
            yield int(order[number % self.num_images])


class Progress:
    """Steps done and seconds spent over all sessions of a run; saved in its checkpoints."""

    def __init__(self) -> None:
        self.step, self.seconds = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]


def find_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints in `output_dir`, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def checkpoint_to_resume(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means, None to start anew."""
    checkpoints = find_checkpoints(output_dir)
    if resume_from_checkpoint is None:
        if checkpoints:
            raise ValueError(
                f"`--output_dir` {output_dir} holds {checkpoints[-1].name} of an earlier run; expected another "
                "folder, or `--resume_from_checkpoint latest`."
            )
        return None
    if resume_from_checkpoint == "latest":
        return checkpoints[-1] if checkpoints else None
    for candidate in (Path(resume_from_checkpoint), output_dir / resume_from_checkpoint):
        if candidate.is_dir():
            return candidate
    raise ValueError(f"`--resume_from_checkpoint` is {resume_from_checkpoint!r}; expected a checkpoint or 'latest'.")


def create_accelerator(args: argparse.Namespace) -> Accelerator:
    """The accelerator that a script makes once, before anything that processes share."""
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_config=ProjectConfiguration(
            project_dir=str(args.output_dir), logging_dir=str(args.output_dir / "logs")
        ),
    )
    if accelerator.device.type == "cpu":
        # `accelerate launch` leaves one thread per process unless told otherwise; more than the CPUs it may use, as
        # in a container or under `taskset`, would wait for each other.
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cpus // accelerator.num_processes))
    return accelerator


def train(
    accelerator: Accelerator,
    model: Any,
    dataset: Dataset | Subset,
    compute_loss: Callable[[Any, Any], dict[str, torch.Tensor]],
    args: argparse.Namespace,
    output_dir: Path,
    description: str,
    seed: int,
    save_images: Callable[[Any, int], None] | None = None,
    save_images_steps: int = 1,
) -> tuple[Any, dict[str, Any]]:
    """Train `model` for `--max_train_steps`, resuming where `--resume_from_checkpoint` says.

    Args:
        dataset: of tensors, see `with_tensors`.
        compute_loss: scalars to log by name, "loss" among them, from the prepared model and a batch.
        output_dir: where checkpoints go.
        save_images: called with the model (averaged, in eval mode) and the step, on the main process, every
            `save_images_steps` and after the last.

    Returns:
        The trained model with averaged weights, and a record of the run: steps, seconds, last losses.
    """
    resume = checkpoint_to_resume(output_dir, args.resume_from_checkpoint)
    # channels_last is what convolutions like best, on CPUs too.
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    optimizer_class: Any = torch.optim.AdamW if args.optimizer == "adamw" else partial(torch.optim.SGD, momentum=0.9)
    optimizer = optimizer_class(model.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    # Neither prepared nor stepped by accelerate, which would count once per process.
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=args.max_train_steps,
    )
    progress = Progress()
    registered = [progress, lr_scheduler]
    ema = None
    if args.use_ema:
        ema = EMAModel(model.parameters(), decay=args.ema_max_decay)  # warms up as (1 + step) / (10 + step)
        ema.to(accelerator.device)
        registered.append(ema)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(*registered)
    if resume is not None:
        try:
            accelerator.load_state(str(resume))
        except (OSError, RuntimeError, KeyError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"`--resume_from_checkpoint` {resume} does not fit this run: {reason}") from error
        if ema is not None:
            ema.to(accelerator.device)

    images_per_micro_batch = args.train_batch_size * accelerator.num_processes
    images_per_step = images_per_micro_batch * args.gradient_accumulation_steps
    sampler = RunSampler(len(dataset), seed, progress.step * images_per_step, args.max_train_steps * images_per_step)
    loader = accelerator.prepare(
        DataLoader(dataset, args.train_batch_size, sampler=sampler, num_workers=args.dataloader_num_workers)
    )

    simple = {name: value for name, value in vars(args).items() if isinstance(value, int | float | str)}
    accelerator.init_trackers(output_dir.name, config=simple)
    bar = tqdm(
        total=args.max_train_steps,
        initial=progress.step,
        desc=description,
        unit="step",
        disable=not accelerator.is_main_process,
    )
    micro_step = progress.step * args.gradient_accumulation_steps
    clock = time.monotonic()
    logs: dict[str, float] = {}
    model.train()
    for batch in loader:
        stream = micro_step * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(stream_seed(seed, stream))
        micro_step += 1
        with accelerator.accumulate(prepared):
            losses = compute_loss(prepared, batch)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        lr_scheduler.step()
        if ema is not None:
            ema.step(model.parameters())
        progress.step += 1
        if progress.step % 10 == 0 or progress.step == args.max_train_steps:
            logs = {name: float(value.detach()) for name, value in losses.items()}
            bar.set_postfix({name: f"{value:.4f}" for name, value in logs.items()}, refresh=False)
            accelerator.log({**logs, "learning_rate": lr_scheduler.get_last_lr()[0]}, step=progress.step)
        bar.update()
        is_last = progress.step == args.max_train_steps
        if progress.step % args.checkpointing_steps == 0 or is_last:
            progress.seconds, clock = progress.seconds + time.monotonic() - clock, time.monotonic()
            save_checkpoint(accelerator, output_dir, progress.step, args.checkpoints_total_limit)
        if save_images is not None and (progress.step % save_images_steps == 0 or is_last):
            if accelerator.is_main_process:
                with_averages(model, ema, lambda: save_images(model, progress.step))
            accelerator.wait_for_everyone()
    bar.close()
    progress.seconds += time.monotonic() - clock
    if ema is not None:
        ema.copy_to(model.parameters())
    record = {
        "max_train_steps": args.max_train_steps,
        "images_per_step": images_per_step,
        "seed": seed,
        "seconds": round(progress.seconds, 1),
        "last": logs,
    }
    accelerator.free_memory()
    accelerator._custom_objects.clear()  # else the next run's checkpoints would hold this run's too
    return model.eval(), record


def with_averages(model: Any, ema: EMAModel | None, call: Callable[[], None]) -> None:
    """Call with the averaged weights in `model`, in eval mode, and the random state left as it was."""
    if ema is not None:
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        call()
    model.train()
    if ema is not None:
        ema.restore(model.parameters())


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, total_limit: int) -> None:
    """Write `checkpoint-<step>` under a temporary name, rename it, and drop the oldest above `total_limit`."""
    temporary = output_dir / f"checkpoint-{step}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(output_dir / f"checkpoint-{step}", ignore_errors=True)  # of a run resumed before it
        temporary.rename(output_dir / f"checkpoint-{step}")
        for old in find_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def write_record(folder: Path, record: dict[str, Any], args: argparse.Namespace) -> None:
    """Write `training.json` into `folder`."""
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    content = {
        **record,
        "flags": flags,
        "versions": {name: version(name) for name in ("torch", "diffusers", "accelerate", "diffusers-multiguidance")},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    (folder / "training.json").write_text(json.dumps(content, indent=2) + "\n")
