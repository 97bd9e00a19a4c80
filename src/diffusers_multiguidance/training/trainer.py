"""The loop, checkpoints and resume that all training shares.

The noise of a micro-batch depends on nothing but the run's seed, the step and the process, and the order of the images
on the seed and the epoch, each by a random stream of its own: a run that was interrupted draws what an uninterrupted
one would have drawn.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from datasets import Dataset
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Sampler, Subset
from tqdm.auto import tqdm

from ..data.load import describe_counts, load_training_set
from ..utils.files import find_written, move_files, note_written, remove_written, uninterrupted
from ..utils.seeds import stream_seed
from ..utils.writable import check_writable
from .settings import TrainingSettings

Batch = dict[str, torch.Tensor]
ORDER = "order.txt"  # in a checkpoint: as which of its folder it was written
TEMPORARY = ".checkpoint"  # the same for all processes, and for a run after one that was killed


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
                generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
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
    """Complete checkpoints in `output_dir`, in the order in which they were written, whatever their steps."""
    found = [path.parent for path in output_dir.glob("checkpoint-*/optimizer.bin")]
    return sorted((path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)), key=_order)


def _order(checkpoint: Path) -> tuple[int, int]:
    """As which of its folder it was written (0 if not by `save_checkpoint`), and its step."""
    note = checkpoint / ORDER
    return int(note.read_text()) if note.exists() else 0, int(checkpoint.name.split("-")[1])


def checkpoint_to_resume(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means, None to start anew."""
    checkpoints = find_checkpoints(output_dir)
    temporary = output_dir / TEMPORARY
    if temporary.exists() and not (temporary / ORDER).exists():
        raise ValueError(f"`--output_dir` has {temporary}, which no training wrote; expected that name to be free.")
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


def create_accelerator(settings: TrainingSettings) -> Accelerator:
    """The accelerator that a run makes once, before anything that processes share.

    Raises:
        ValueError: for an `output_dir` that can't be written.
    """
    accelerator = Accelerator(
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        mixed_precision=settings.mixed_precision,
        log_with=settings.report_to,
        project_config=ProjectConfiguration(
            project_dir=str(settings.output_dir), logging_dir=str(settings.output_dir / "logs")
        ),
    )
    if accelerator.is_main_process:
        check_writable(settings.output_dir, "--output_dir")
    if accelerator.device.type == "cpu" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        # `accelerate launch`, which sets that, leaves one thread per process unless told otherwise; more than the CPUs
        # it may use, as in a container or under `taskset`, would wait for each other.
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cpus // accelerator.num_processes))
    return accelerator


def read_training_set(accelerator: Accelerator, settings: TrainingSettings) -> Dataset:
    """The images that the settings name, see `load_training_set`; says what was left out.

    Raises:
        ValueError: where there are none.
    """
    with accelerator.main_process_first():
        dataset, counts = load_training_set(
            settings.dataset_name, settings.train_data_dir, settings.size, settings.channels
        )
    for line in describe_counts(counts, len(dataset)):
        accelerator.print(line)
    return dataset


def train(
    accelerator: Accelerator,
    model: Any,
    dataset: Dataset | Subset,
    compute_loss: Callable[[Any, Any], dict[str, torch.Tensor]],
    settings: TrainingSettings,
    description: str,
    save_images: Callable[[Any, int], None] | None = None,
    save_images_steps: int = 1,
) -> tuple[Any, dict[str, Any]]:
    """Train `model` for `max_train_steps`, with checkpoints in `output_dir`, resuming where the settings say.

    Args:
        dataset: of tensors, see `with_tensors`.
        compute_loss: scalars to log by name, "loss" among them, from the prepared model and a batch.
        save_images: called with the model (averaged, in eval mode) and the step, on the main process, every
            `save_images_steps` and after the last.

    Returns:
        The trained model with averaged weights, and a record of the run: steps, seconds, last losses.
    """
    output_dir, seed = settings.output_dir, settings.seed
    resume = checkpoint_to_resume(output_dir, settings.resume_from_checkpoint)
    # channels_last is what convolutions like best, on CPUs too.
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    optimizers: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9)}
    optimizer = optimizers[settings.optimizer](
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.adam_weight_decay
    )
    # Neither prepared nor stepped by accelerate, which would count once per process.
    lr_scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
    )
    progress = Progress()
    registered = [progress, lr_scheduler]
    ema = None
    if settings.use_ema:
        ema = EMAModel(model.parameters(), decay=settings.ema_max_decay)  # warms up as (1 + step) / (10 + step)
        ema.to(accelerator.device)
        registered.append(ema)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(*registered)
    if resume is not None:
        try:
            accelerator.load_state(str(resume))
        except (OSError, RuntimeError, LookupError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
            raise ValueError(f"`--resume_from_checkpoint` {resume} does not fit this run: {_reason(error)}") from error
        check_step(progress.step, resume, settings)
        if ema is not None:
            ema.to(accelerator.device)

    images_per_micro_batch = settings.train_batch_size * accelerator.num_processes
    images_per_step = images_per_micro_batch * settings.gradient_accumulation_steps
    start, stop = progress.step * images_per_step, settings.max_train_steps * images_per_step
    sampler = RunSampler(len(dataset), seed, start, stop)
    loader = accelerator.prepare(
        DataLoader(dataset, settings.train_batch_size, sampler=sampler, num_workers=settings.dataloader_num_workers)
    )

    simple = {name: value for name, value in asdict(settings).items() if isinstance(value, int | float | str)}
    accelerator.init_trackers(output_dir.name, config=simple)
    bar = tqdm(
        total=settings.max_train_steps,
        initial=progress.step,
        desc=description,
        unit="step",
        disable=not accelerator.is_main_process,
    )
    micro_step = progress.step * settings.gradient_accumulation_steps
    clock = time.monotonic()
    logs: dict[str, float] = {}
    good = resume
    total_loss = torch.zeros((), device=accelerator.device)  # finite as long as each loss is
    model.train()
    with bar:
        for batch in loader:
            torch.manual_seed(stream_seed(seed, "noise", accelerator.process_index, micro_step))
            micro_step += 1
            with accelerator.accumulate(prepared):
                losses = compute_loss(prepared, batch)
                total_loss += losses["loss"].detach()
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared.parameters(), settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            lr_scheduler.step()
            if ema is not None:
                ema.step(model.parameters())
            progress.step += 1
            is_last = progress.step == settings.max_train_steps
            to_save = progress.step % settings.checkpointing_steps == 0 or is_last
            if progress.step % 10 == 0 or is_last:
                logs = {name: float(value.detach()) for name, value in losses.items()}
                bar.set_postfix({name: f"{value:.4f}" for name, value in logs.items()}, refresh=False)
                accelerator.log({**logs, "learning_rate": lr_scheduler.get_last_lr()[0]}, step=progress.step)
            bar.update()
            looked_at = [total_loss, *model.parameters()] if to_save else [total_loss]
            if (progress.step % 10 == 0 or to_save) and not all(value.isfinite().all() for value in looked_at):
                raise ValueError(
                    f"The loss is not finite at step {progress.step}; expected numbers (last good checkpoint: {good})."
                )
            # Before the checkpoint: a run that goes on from it makes no images of its step again.
            if save_images is not None and (progress.step % save_images_steps == 0 or is_last):
                if accelerator.is_main_process:
                    with_averages(model, ema, lambda: save_images(model, progress.step))
                accelerator.wait_for_everyone()
            if to_save:
                progress.seconds, clock = progress.seconds + time.monotonic() - clock, time.monotonic()
                good = save_checkpoint(accelerator, output_dir, progress.step, settings.checkpoints_total_limit)
    progress.seconds += time.monotonic() - clock
    if ema is not None:
        ema.copy_to(model.parameters())
    record = {
        "max_train_steps": settings.max_train_steps,
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


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, total_limit: int) -> Path:
    """Write `checkpoint-<step>`, under a hidden name until it is whole, and drop the oldest above `total_limit`.

    Raises:
        ValueError: where there is no room for it.
    """
    target = output_dir / f"checkpoint-{step}"
    temporary = output_dir / TEMPORARY
    try:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            order = 1 + max((_order(path)[0] for path in find_checkpoints(output_dir)), default=0)
            (temporary / ORDER).write_text(f"{order}\n")  # first: by it we know the folder for ours
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            note_written(temporary)
            remove_written(target)  # of a run that was resumed before it
            move_files(temporary, target)
            for old in find_checkpoints(output_dir)[:-total_limit]:
                remove_written(old)
    except (OSError, RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
        raise ValueError(f"`--output_dir` has no room for {target} ({_reason(error)}); expected some.") from error
    finally:
        if accelerator.is_main_process:
            with uninterrupted():
                shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    return target


def check_step(step: int, resume: Path, settings: TrainingSettings) -> None:
    """Raise `ValueError` where `resume`, of this step, is past the last one, or a stranger's checkpoint in the way."""
    if step > settings.max_train_steps:
        raise ValueError(
            f"`--max_train_steps` is {settings.max_train_steps}; expected at least {step}, the step of {resume}."
        )
    for path in find_checkpoints(settings.output_dir):
        if not find_written(path) and _order(path)[1] > step:
            raise ValueError(
                f"`--output_dir` {settings.output_dir} holds {path.name}, which no training here wrote; expected "
                "another folder, or to resume from it."
            )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def write_record(folder: Path, record: dict[str, Any], settings: TrainingSettings) -> None:
    """Write `training.json` into `folder`."""
    content = {
        **record,
        "flags": asdict(settings),
        "versions": {name: version(name) for name in ("torch", "diffusers", "accelerate", "diffusers-multiguidance")},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    (folder / "training.json").write_text(json.dumps(content, indent=2, default=str) + "\n")
