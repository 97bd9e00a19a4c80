"""Training of the classifiers of noisy images that guide (paper, section 2.2 and appendix C)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset

from ..data.labels import read_labels, with_labels, with_numbers
from ..data.transforms import image_channels
from ..diffusion import GaussianDiffusion
from ..generate import load_pipeline
from ..guidance import check_guidance_interval
from ..hub.publish import check_publishable
from ..models import NoisyClassifier, NoisyClassifierSet
from ..pipelines import MultiGuidanceCFGPipeline, MultiGuidanceDDPMPipeline
from ..schedulers import SCHEDULERS, create_scheduler, scheduler_name
from ..utils.files import remove_written, replace_folder
from ..utils.seeds import stream_seed
from ..utils.writable import check_attributes
from .finish import finish_pipeline
from .inputs import take_inputs, with_inputs
from .settings import PipelineSettings, check_numbers, flag
from .trainer import Batch, create_accelerator, find_checkpoints, read_training_set, train, write_record


@dataclass(kw_only=True)
class ClassifierSettings(PipelineSettings):
    """Settings of train_classifier.py."""

    pipeline: str = flag(help="Folder or Hub id of any DDPM: of train_unet.py, or google/ddpm-celebahq-256.")
    attributes: list[str] = flag(help="Label columns to classify.")
    num_classifiers: int = flag(1, "Members of the set, seeds --seed and up.")
    label_smoothing: float = flag(0.0, "As of torch's cross-entropy.")
    pseudo_labels: bool = flag(
        False, "Learn value_<attribute> as the probability of the second class; for what generate.py writes."
    )
    teacher: str | None = flag(None, "Pipeline with a set of classifiers whose log-odds one network learns.")
    guidance_scale: float = flag(60.0, "Default of the finished pipeline with its scheduler.")
    guidance_interval: list[float] = flag([0.0, 1.0], "Default, likewise: start and end, as shares of the steps.")
    num_inference_steps: int | None = flag(None, "Default, likewise; the given pipeline's unless given.")
    scheduler: str | None = flag(None, "Of the finished pipeline, say sde-dpmsolver++; the given one's unless given.")
    learning_rate: float = 3e-4
    max_train_steps: int = 150_000
    use_ema: bool = False
    attention_resolutions: list[int] = flag(
        [32, 16, 8], "Sizes of the feature maps with self-attention; may be empty."
    )
    layers_per_block: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attributes:
            raise ValueError("`--attributes` is empty; expected the names of label columns.")
        check_attributes(self.attributes, "attributes")
        check_numbers(self, "num_classifiers", "num_inference_steps", at_least=1)
        check_numbers(self, "label_smoothing", at_least=0, below=1)
        check_numbers(self, "guidance_scale", at_least=0)
        check_guidance_interval(self.guidance_interval)
        if self.scheduler not in (None, *SCHEDULERS):
            raise ValueError(f"`--scheduler` is {self.scheduler!r}; expected one of {list(SCHEDULERS)}.")
        if self.teacher is not None and (self.pseudo_labels or self.label_smoothing):
            raise ValueError(
                "`--teacher` is given with `--pseudo_labels` or `--label_smoothing`; expected one way to teach."
            )
        if self.resume_from_checkpoint not in (None, "latest"):
            raise ValueError(f"`--resume_from_checkpoint` is {self.resume_from_checkpoint!r}; expected 'latest'.")


def train_classifiers(settings: ClassifierSettings) -> Path:
    """Train noisy classifiers for a denoiser, and write the pipeline that they guide.

    Each classifier goes to `<output_dir>/member-<k>`; resuming goes on past the members that are done. Classifiers of
    other attributes that the pipeline has already stay in it. Where it has a VAE, they look at its latents.

    Returns:
        The pipeline's folder, `<output_dir>/pipeline`.

    Raises:
        ValueError: for a pipeline, a training set or settings that no run can be made of, before anything is written.
    """
    if settings.push_to_hub:
        check_publishable(settings.repo_id)  # hours later would be late
    accelerator = create_accelerator(settings)
    done = sorted(settings.output_dir.glob("member-*"))
    if done and settings.resume_from_checkpoint is None:
        raise ValueError(
            f"`--output_dir` {settings.output_dir} holds {done[0].name} of an earlier run; expected another folder, "
            "or `--resume_from_checkpoint latest`."
        )
    given = load_pipeline(settings.pipeline).to("cpu")
    dataset = read_training_set(accelerator, settings)
    found = (*settings.size, image_channels(dataset))
    if found != (*given.image_size, given.channels):
        raise ValueError(
            f"`--resolution` is {settings.resolution} with {found[2]} channels; expected those of the pipeline, "
            f"{given.image_size[0]}x{given.image_size[1]} with {given.channels}."
        )
    dataset = with_classes(dataset, settings, accelerator.print)
    attributes = {name: dataset.features[name].names for name in settings.attributes}
    teacher = None
    if settings.teacher is not None:
        teacher = MultiGuidanceDDPMPipeline.from_pretrained(settings.teacher).classifiers
        known = {} if teacher is None else {name: list(classes) for name, classes in teacher.attributes.items()}
        if any(known.get(name) != classes for name, classes in attributes.items()):
            raise ValueError(f"`--teacher` {settings.teacher} knows {known}; expected {attributes} among that.")
    if teacher is not None:
        teacher.to(accelerator.device)
    compute_loss = classifier_loss(given, attributes, settings, teacher)
    columns = [label_column(name, settings) for name in attributes]
    inputs = with_inputs(accelerator, dataset, given.vae, settings, columns)
    size, channels = given.denoiser.config["sample_size"], given.denoiser.config["in_channels"]

    members = []
    for number in range(settings.num_classifiers):
        own = replace(settings, output_dir=settings.output_dir / f"member-{number}", seed=settings.seed + number)
        if settings.resume_from_checkpoint and (own.output_dir / "config.json").exists():
            members.append(NoisyClassifier.from_pretrained(own.output_dir))
            continue
        torch.manual_seed(stream_seed(own.seed, "weights", 0))
        classifier = NoisyClassifier(attributes, size, channels, **settings.network)
        description = f"classifier {number + 1}/{settings.num_classifiers}"
        classifier, record = train(accelerator, classifier, inputs, compute_loss, own, description)
        members.append(classifier.cpu().to(memory_format=torch.contiguous_format))
        if accelerator.is_main_process:
            with replace_folder(own.output_dir) as folder:
                members[-1].save_pretrained(folder)
                write_record(folder, record, own)
            for checkpoint in find_checkpoints(own.output_dir):
                remove_written(checkpoint)
        accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        steps = f"{settings.max_train_steps} steps of {settings.train_batch_size} images for each process"
        training = [
            f"Denoiser: from `{settings.pipeline}`.",
            f"Classifiers: {settings.num_classifiers} with {steps}, seeds from {settings.seed}",
        ]
        finish_pipeline(join(given, members, settings), settings, "train_classifier", training, {})
    accelerator.end_training()
    return settings.output_dir / "pipeline"


def with_classes(dataset: Dataset, settings: ClassifierSettings, say: Callable[[str], None]) -> Dataset:
    """The images that have all that is to be learnt, and every attribute as a `ClassLabel`."""
    for attribute in settings.attributes:
        if not settings.pseudo_labels:
            dataset = with_labels(dataset, attribute, "attributes", say)
            continue
        feature = dataset.features.get(attribute)
        if not isinstance(feature, ClassLabel) or feature.num_classes != 2:
            raise ValueError(f"`--attributes` is {attribute!r}; expected two classes, of {dataset.column_names}.")
        dataset = with_numbers(dataset, label_column(attribute, settings), "pseudo_labels", say)
    for attribute in settings.attributes if not settings.pseudo_labels else []:
        read_labels(dataset, attribute, "attributes")  # both classes may have been of images that lack another label
    return dataset


def label_column(attribute: str, settings: ClassifierSettings) -> str:
    """The column that is learnt."""
    return f"value_{attribute}" if settings.pseudo_labels else attribute


def classifier_loss(
    pipeline: MultiGuidanceDDPMPipeline,
    attributes: Mapping[str, list[str]],
    settings: ClassifierSettings,
    teacher: NoisyClassifierSet | None,
) -> Callable[[Any, Batch], dict[str, torch.Tensor]]:
    """The loss over noisy images, added up over the attributes, for `train`."""
    diffusion = GaussianDiffusion.from_scheduler(pipeline.scheduler)

    def compute_loss(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        x_0 = F.pixel_unshuffle(take_inputs(batch, pipeline.vae, settings), pipeline.config["patch_size"])
        index = torch.randint(len(diffusion), (len(x_0),))
        x_t = diffusion.add_noise(x_0, torch.randn_like(x_0), index)
        timesteps = diffusion.timesteps[index].to(x_0.device)
        logits = model(x_t, timesteps).logits
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(x_t, timesteps).logits
        logs = {"loss": torch.zeros((), device=x_0.device)}
        for name in attributes:
            values, output = batch[label_column(name, settings)], logits[name].float()
            # Cross-entropy with the value as the second class's probability is least where p is its mean given x_t.
            target = torch.stack([1 - values, values], dim=1).float() if settings.pseudo_labels else values
            if teacher is None:
                loss = F.cross_entropy(output, target, label_smoothing=settings.label_smoothing)
            else:
                # Logits, not probabilities: guidance follows their slope where the teacher is sure, too.
                loss = F.smooth_l1_loss(output.log_softmax(dim=1), taught[name].log_softmax(dim=1))
            logs["loss"] = logs["loss"] + loss
            label = (values > 0.5).long() if settings.pseudo_labels else values
            logs[f"accuracy_{name}"] = (output.argmax(dim=1) == label).float().mean()
        return logs

    return compute_loss


def join(
    given: MultiGuidanceDDPMPipeline, members: list[NoisyClassifier], settings: ClassifierSettings
) -> MultiGuidanceDDPMPipeline:
    """The given pipeline with the new classifiers, its other ones, and the defaults of the settings."""
    there = [] if given.classifiers is None else given.classifiers.members
    others = [member for member in there if not set(member.attributes) & set(settings.attributes)]
    name = settings.scheduler or scheduler_name(given.scheduler)
    defaults = dict(given.config["sampling_defaults"])
    if isinstance(given, MultiGuidanceCFGPipeline):  # whose scales of other schedulers mean something else
        defaults = {name: defaults.get(name, {})}
    defaults[name] = {
        **defaults.get(name, {}),
        **({} if settings.num_inference_steps is None else {"num_inference_steps": settings.num_inference_steps}),
        "guidance_scale": settings.guidance_scale,
        "guidance_interval": list(settings.guidance_interval),
    }
    return MultiGuidanceDDPMPipeline(
        unet=given.unet,
        transformer=given.transformer,
        vae=given.vae,
        classifiers=NoisyClassifierSet.from_members([*others, *members]),
        scheduler=create_scheduler(name, given.scheduler),
        patch_size=given.config["patch_size"],
        sampling_defaults=defaults,
    )
