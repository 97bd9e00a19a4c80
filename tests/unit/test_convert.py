"""Checkpoints of guided-diffusion: the same outputs after the conversion, and one sentence for what can't be."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.guided_diffusion import EncoderUNetModel, UNetModel, randomize
from safetensors import safe_open
from safetensors.torch import save_file

from diffusers_multiguidance import MultiGuidanceDDPMPipeline, main
from diffusers_multiguidance.diffusion import GaussianDiffusion
from diffusers_multiguidance.hub.convert_guided_diffusion import convert, convert_classifier, convert_denoiser
from diffusers_multiguidance.models import NoisyClassifier

GOLDEN = Path(__file__).parents[1] / "golden"
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TIMESTEPS = torch.tensor([0.0, 17.0, 981.5])


def read_golden(name: str) -> tuple[dict, dict, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Constructor's arguments, state dict, images, timesteps and what comes out."""
    with safe_open(GOLDEN / f"openai_{name}_tiny.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {key.removeprefix("state/"): tensor for key, tensor in tensors.items() if key.startswith("state/")}
    return config, state, tensors["input/x"], tensors["input/timesteps"], tensors["output"]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.1, "nothing to compare"
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_golden_denoiser():
    config, state, x, timesteps, output = read_golden("unet")
    reference = UNetModel(**config).eval()
    reference.load_state_dict(state)
    assert_same(reference(x, timesteps), output)
    assert_same(convert_denoiser(state, 16, num_heads=config["num_heads"])(x, timesteps).sample, output)


@torch.no_grad()
def test_golden_classifier():
    config, state, x, timesteps, output = read_golden("classifier")
    reference = EncoderUNetModel(**config).eval()
    reference.load_state_dict(state)
    assert_same(reference(x, timesteps), output)
    head_channels = config["num_head_channels"]
    logits = convert_classifier(state, 16, num_head_channels=head_channels)(x, timesteps).logits["label"]
    assert_same(logits, output)
    some = convert_classifier(state, 16, "bird", {"jay": 7, "hen": 3, "owl": 0}, head_channels)
    assert some.attributes == {"bird": ["jay", "hen", "owl"]}
    assert_same(some(x, timesteps).logits["bird"], output[:, [7, 3, 0]])


VARIANTS = [
    {},
    {"use_scale_shift_norm": True},
    {"resblock_updown": True},
    {"use_scale_shift_norm": True, "resblock_updown": True, "use_new_attention_order": True},
    {"use_new_attention_order": True, "num_head_channels": 16},
    {"attention_resolutions": (1, 2), "channel_mult": (1, 1), "resblock_updown": True},
    {"attention_resolutions": (), "channel_mult": (1, 2, 3), "num_res_blocks": 3},
    {"attention_resolutions": (1, 4), "channel_mult": (1, 3, 2), "num_res_blocks": 2, "resblock_updown": True},
    {"attention_resolutions": (1,), "channel_mult": (1,)},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@torch.no_grad()
def test_denoisers(variant):
    config = {"num_head_channels": 32, **variant}
    reference = randomize(UNetModel(**config))
    unet = convert_denoiser(
        reference.state_dict(), 16, config["num_head_channels"], None, config.get("use_new_attention_order", False)
    )
    assert_same(unet(X, TIMESTEPS).sample, reference(X, TIMESTEPS))
    assert "_num_heads" not in unet.config


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@torch.no_grad()
def test_classifiers(variant):
    config = {"num_head_channels": 32, "out_channels": 5, **variant}
    reference = randomize(EncoderUNetModel(**config))
    classifier = convert_classifier(
        reference.state_dict(),
        16,
        num_head_channels=config["num_head_channels"],
        new_attention_order=config.get("use_new_attention_order", False),
    )
    assert_same(classifier(X, TIMESTEPS).logits["label"], reference(X, TIMESTEPS))
    again = NoisyClassifier.from_config(classifier.config)
    assert again.state_dict().keys() == classifier.state_dict().keys()


@torch.no_grad()
def test_attention_order_and_heads_matter():
    reference = randomize(UNetModel(num_head_channels=16))
    for head_channels, new_order in ((16, True), (32, False), (64, False)):
        unet = convert_denoiser(reference.state_dict(), 16, head_channels, None, new_order)
        assert (unet(X, TIMESTEPS).sample - reference(X, TIMESTEPS)).abs().max() > 1e-3


@torch.no_grad()
def test_classes_and_fixed_variance():
    reference = randomize(UNetModel(num_classes=7, out_channels=3, num_head_channels=32))
    unet = convert_denoiser(reference.state_dict(), 16, 32)
    labels = torch.tensor([0, 6, 2])
    assert_same(unet(X, TIMESTEPS, labels).sample, reference(X, TIMESTEPS, labels))
    assert unet.config.out_channels == 3


@pytest.mark.parametrize("order", [False, True])
@torch.no_grad()
def test_four_heads_at_every_width_survive_the_folder(order, tmp_path):
    """guided-diffusion's own default, of which diffusers' configuration knows nothing."""
    config = {"channel_mult": (1, 2, 3), "attention_resolutions": (2, 4), "use_new_attention_order": order}
    reference = randomize(UNetModel(num_heads=4, **config))
    torch.save(reference.state_dict(), tmp_path / "unet.pt")
    convert(tmp_path / "unet.pt", tmp_path / "pipeline", image_size=16, num_heads=4, new_attention_order=order)
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "pipeline")
    assert_same(pipeline.unet(X, TIMESTEPS).sample, reference(X, TIMESTEPS))
    pipeline.save_pretrained(tmp_path / "again")
    again = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "again")
    assert_same(again.unet(X, TIMESTEPS).sample, reference(X, TIMESTEPS))


@torch.no_grad()
def test_half_precision_files(tmp_path):
    reference = randomize(UNetModel(num_head_channels=32)).half().float()
    save_file({key: tensor.half() for key, tensor in reference.state_dict().items()}, tmp_path / "unet.safetensors")
    convert(tmp_path / "unet.safetensors", tmp_path / "pipeline", image_size=16, num_head_channels=32)
    unet = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "pipeline").unet
    assert unet.dtype == torch.float32
    assert_same(unet(X, TIMESTEPS).sample, reference(X, TIMESTEPS))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A small denoiser of ten classes, a classifier with ten outputs, and what is no such thing."""
    folder = tmp_path_factory.mktemp("checkpoints")
    unet = randomize(UNetModel(num_classes=10, num_head_channels=32)).state_dict()
    torch.save(unet, folder / "unet.pt")
    classifier = randomize(EncoderUNetModel(out_channels=10, num_head_channels=32)).state_dict()
    save_file(classifier, folder / "classifier.safetensors")
    torch.save(
        randomize(EncoderUNetModel(out_channels=9, in_channels=1, num_head_channels=32)).state_dict(),
        folder / "grey.pt",
    )
    torch.save(randomize(UNetModel(channel_mult=(2, 3))).state_dict(), folder / "wide.pt")
    torch.save(randomize(UNetModel(in_channels=6)).state_dict(), folder / "super.pt")
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "other.pt")
    torch.save({**unet, "extra.weight": torch.zeros(3)}, folder / "more.pt")
    torch.save({key: value for key, value in unet.items() if "out_layers.3" not in key}, folder / "less.pt")
    torch.save({"state_dict": unet}, folder / "nested.pt")
    adaptive = {key: value for key, value in classifier.items() if not key.startswith("out.2.")}
    torch.save({**adaptive, "out.3.weight": torch.zeros(10, 64, 1, 1)}, folder / "adaptive.pt")
    torch.save(Dangerous(), folder / "code.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps(Dangerous(), protocol=2))
    for name in ("unet.pt", "classifier.safetensors"):
        (folder / f"cut-{name}").write_bytes((folder / name).read_bytes()[:-1000])
    (folder / "empty.pt").touch()
    return folder


class Dangerous:
    def __reduce__(self):
        return sys.exit, ("the pickle's code was run",)


def run(checkpoints: Path, command: str, out: Path, monkeypatch) -> None:
    places = {path.name: str(path) for path in checkpoints.iterdir()}
    words = [places.get(word, word) for word in command.split()]
    monkeypatch.setattr(sys, "argv", ["multiguidance", "convert", *words, "--out", str(out)])
    main()


CLASSIFIED = "unet.pt --classifier classifier.safetensors --classifier-num-head-channels 32"
CLASSIFIED += " --num-head-channels 32 --image-size 16"


def test_command(checkpoints, tmp_path, monkeypatch):
    out = tmp_path / "birds"
    out.mkdir()
    (out / "mine.txt").write_text("stays")
    kept = "--attribute bird --class hen=8 --class jay=1"
    run(checkpoints, f"{CLASSIFIED} {kept} --noise-schedule cosine --diffusion-steps 4000", out, monkeypatch)
    assert (out / "mine.txt").read_text() == "stays"
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.attributes == {"bird": ["hen", "jay"]}
    scheduler = pipeline.scheduler.config
    assert (scheduler.num_train_timesteps, scheduler.beta_schedule) == (4000, "squaredcos_cap_v2")
    assert (scheduler.variance_type, scheduler.timestep_spacing) == ("learned_range", "linspace")
    call = pipeline.resolve_call()
    assert (call["num_inference_steps"], call["guidance_scale"]) == (250, 60.0), "the paper's"

    def sample(target):
        generator = torch.Generator().manual_seed(0)
        call = {"class_labels": [8, 1], "num_inference_steps": 2, "output_type": "np", "generator": generator}
        return pipeline(2, target, **call).images

    unguided, guided = sample(None), sample({"bird": 0.5})
    assert guided.shape == (2, 16, 16, 3)
    assert np.isfinite(guided).all()
    assert np.abs(guided - unguided).max() > 1e-3
    with pytest.raises(ValueError, match="`class_labels` is None; expected a label from 0 to 9 for each image"):
        pipeline(2)
    card = (out / "README.md").read_text()
    assert 'target={"bird": 0.5}, class_labels=[0] * 16' in card
    assert str(checkpoints) not in card

    run(checkpoints, "unet.pt --num-head-channels 32 --image-size 16", out, monkeypatch)
    assert not (out / "classifiers").exists(), "what an earlier conversion wrote gives way"
    assert (out / "mine.txt").exists()
    assert MultiGuidanceDDPMPipeline.from_pretrained(out).scheduler.config.beta_end == 0.02


def test_all_outputs_are_kept_unless_some_are_chosen(checkpoints, tmp_path, monkeypatch):
    run(checkpoints, f"{CLASSIFIED} --attribute bird", tmp_path / "out", monkeypatch)
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.attributes == {"bird": [str(number) for number in range(10)]}
    out = pipeline(1, {"bird": {"8": 0.5, "1": 0.5}}, num_inference_steps=2, class_labels=[8])
    assert out.probabilities["bird"].shape == (1, 10)
    assert 'target={"bird": {"0": 0.5, "9": 0.5}}' in (tmp_path / "out" / "README.md").read_text()


def test_rescaled_timesteps(checkpoints, tmp_path, monkeypatch):
    """Of 4000 steps every fourth is left, and the network is told its number among those."""
    command = "unet.pt --num-head-channels 32 --image-size 16 --noise-schedule cosine --diffusion-steps 4000"
    diffusions = []
    for extra in ("", " --rescale-timesteps"):
        run(checkpoints, command + extra, tmp_path / f"out{extra}", monkeypatch)
        scheduler = MultiGuidanceDDPMPipeline.from_pretrained(tmp_path / f"out{extra}").scheduler
        diffusions.append(GaussianDiffusion.from_scheduler(scheduler))
    every, fourth = diffusions
    assert (len(every), len(fourth)) == (4000, 1000)
    torch.testing.assert_close(fourth.alphas_cumprod, every.alphas_cumprod[::4])


SMALL = "--num-head-channels 32 --image-size 16"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"code.pt {SMALL}", "code.pt' is broken or has code in it"),
        (f"pickle.pt {SMALL}", "pickle.pt' is broken or has code in it"),
        (f"cut-unet.pt {SMALL}", "is broken"),
        (f"empty.pt {SMALL}", "is broken"),
        (f"unet.pt --classifier cut-classifier.safetensors {SMALL}", "`classifier`"),
        (f"nowhere.pt {SMALL}", "`denoiser` 'nowhere.pt' can't be read"),
        (f"nowhere.safetensors {SMALL}", "`denoiser` 'nowhere.safetensors' can't be read"),
        (f"/ {SMALL}", "`denoiser` '/' can't be read"),
        (f"nested.pt {SMALL}", "nested.pt' is no state dict"),
        (f"other.pt {SMALL}", "`denoiser` has no 'time_embed.0.weight'"),
        (f"classifier.safetensors {SMALL}", "`denoiser` has no 'out.2.weight'"),
        (f"unet.pt --classifier unet.pt {SMALL}", "whose pool is 'attention'"),
        (f"unet.pt --classifier adaptive.pt {SMALL}", "whose pool is 'attention'"),
        (f"unet.pt --classifier grey.pt {SMALL} --classifier-num-head-channels 32", "takes 1 channels"),
        (f"more.pt {SMALL}", "`denoiser` has a 'extra.weight'"),
        (f"less.pt {SMALL}", "`denoiser` has nothing where"),
        (f"wide.pt {SMALL}", "a `channel_mult` that starts with 1"),
        (f"super.pt {SMALL}", "`denoiser` takes 6 channels and gives 6"),
        (f"unet.pt {SMALL} --image-size 15", "`image_size` is 15; expected a multiple of 2"),
        (f"unet.pt {SMALL} --image-size 0", "`image_size` is 0"),
        (f"{CLASSIFIED} --image-size 32", "`classifier` has"),
        (f"{CLASSIFIED} --image-size 24", "`image_size` is 24, and the classifier pools 8x8 features"),
        (f"{CLASSIFIED} --image-size 8", "`classifier` has"),
        (f"unet.pt {SMALL} --num-head-channels 48", "`num_head_channels` is 48; expected a divisor"),
        (f"unet.pt {SMALL} --num-heads 0", "`num_heads` is 0; expected a divisor"),
        (f"{CLASSIFIED} --classifier-num-head-channels 0", "`classifier_num_head_channels` is 0"),
        (f"{CLASSIFIED} --class hen=8 --class jay=10", "'jay' as output 10; expected one of the classifier's, 0 to 9"),
        (f"{CLASSIFIED} --class hen=8", "expected at least two"),
        (f"{CLASSIFIED} --class hen=8 --class jay=8", "each another output"),
        (f"{CLASSIFIED} --class hen=8 --class hen=9", "`--class` is 'hen=9'"),
        (f"{CLASSIFIED} --class hen", "`--class` is 'hen'"),
        (f"{CLASSIFIED} --class hen=-1", "`--class` is 'hen=-1'"),
        (f"{CLASSIFIED} --attribute a/b", "`--attribute` is 'a/b'"),
        (f"unet.pt {SMALL} --class hen=8 --class jay=9", "no `classifier`"),
        (f"unet.pt {SMALL} --noise-schedule sigmoid", "`noise_schedule` is 'sigmoid'"),
        (f"unet.pt {SMALL} --diffusion-steps 20", "`diffusion_steps` is 20"),
        (f"unet.pt {SMALL} --diffusion-steps 2500 --rescale-timesteps", "expected a multiple of 1000"),
    ],
)
def test_what_cannot_be_converted_ends_in_one_sentence(command, message, checkpoints, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(checkpoints, command, tmp_path / "out", monkeypatch)
    assert ended.value.code == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("multiguidance: ")
    assert message in sentence
    assert len(sentence) < 400
    assert not (tmp_path / "out").exists()
