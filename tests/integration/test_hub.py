"""To a Hub and back, over HTTP: pipelines and data sets, what the Hub refuses, and uploads that break off."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from helpers.hub_server import TOKENS, HubServer, serve_hub
from helpers.launch import ROOT
from helpers.tiny import tiny_pipeline
from huggingface_hub import DatasetCard, HfApi, HfFileSystem, ModelCard
from PIL import Image

from diffusers_multiguidance.hub.card import unmeasured_facts, write_pipeline_card
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline

WRITE, READ = TOKENS
MULTIGUIDANCE = Path(sys.executable).with_name("multiguidance")
PIPELINE_FILES = {
    "model_index.json",
    "pipeline.py",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    "classifiers/noisy_classifier.py",
    "classifiers/config.json",
    "classifiers/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with serve_hub(tmp_path_factory.mktemp("hub")) as server:
        yield server


def environment(hub: HubServer, home: Path, token: str | None) -> dict[str, str]:
    """Of a process that knows this Hub and nothing else: no cache, no token but this."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    known = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    return {**inherited, **known, **({"HF_TOKEN": token} if token else {})}


def run(hub: HubServer, home: Path, *command: object, token: str | None = WRITE) -> subprocess.CompletedProcess[str]:
    """`python COMMAND` in a fresh process, which may say anything but a token."""
    words = [sys.executable, *map(str, command)]
    result = subprocess.run(words, env=environment(hub, home, token), capture_output=True, text=True, check=False)
    assert not any(secret in result.stdout + result.stderr for secret in TOKENS)
    return result


def api(hub: HubServer, token: str | bool = WRITE) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def uploads(hub: HubServer, repo_id: str) -> list[str]:
    """Ids of the commits on main but the one that made the repository, oldest first."""
    return [commit.commit_id for commit in api(hub).list_repo_commits(repo_id)][-2::-1]


def card(hub: HubServer, repo_id: str, revision: str, cache: Path) -> ModelCard:
    return ModelCard(
        Path(api(hub).hf_hub_download(repo_id, "README.md", revision=revision, cache_dir=cache)).read_text()
    )


def files(hub: HubServer, repo_id: str, revision: str = "main", repo_type: str = "model") -> set[str]:
    return set(api(hub).list_repo_files(repo_id, revision=revision, repo_type=repo_type)) - {".gitattributes"}


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A pipeline ready to be published."""
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# Tiny\n")
    return tmp_path / "tiny"


PUBLISH = """
import sys
from diffusers_multiguidance import MultiGuidanceDDPMPipeline
from diffusers_multiguidance.hub.publish import publish
for folder in sys.argv[2:]:
    print(publish(MultiGuidanceDDPMPipeline.from_pretrained(folder), sys.argv[1], folder))
"""


@pytest.fixture(scope="module")
def circles(hub, tmp_path_factory) -> tuple[Path, Path]:
    """Two versions of the circles, the second with other weights and fewer files, both published as user/circles."""
    folder = tmp_path_factory.mktemp("versions")
    old, new = folder / "old", folder / "new"
    shutil.copytree(ROOT / "pipelines" / "circles-32", old)
    (old / "evaluators").mkdir()
    (old / "evaluators" / "leftover.json").write_text("{}")
    (old / "note.txt").write_text("of the old version\n")
    pipeline = MultiGuidanceDDPMPipeline.from_pretrained(old)
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(1.1)
    pipeline.save_pretrained(new)
    (new / "README.md").write_text((old / "README.md").read_text())
    (new / ".hidden").write_text("nobody's business")
    result = run(hub, folder / "home", "-c", PUBLISH, "user/circles", old, new)
    assert result.returncode == 0, result.stderr
    urls = [f"{hub.endpoint}/user/circles/commit/{commit}" for commit in uploads(hub, "user/circles")]
    assert result.stdout.split() == urls
    return old, new


def test_each_upload_is_one_commit_with_all_files(hub, circles):
    first, second = uploads(hub, "user/circles")
    committed = {path.relative_to(circles[0]).as_posix() for path in circles[0].rglob("*") if path.is_file()}
    committed |= PIPELINE_FILES  # a committed folder has no code, what is published has
    assert PIPELINE_FILES | {"README.md"} < committed
    assert files(hub, "user/circles", first) == committed
    assert files(hub, "user/circles", second) == committed
    assert api(hub).repo_info("user/circles").private is False


@pytest.fixture(scope="module")
def drawn(circles) -> list[np.ndarray]:
    """What the two versions draw, from their folders."""
    images = []
    for folder in circles:
        pipeline = MultiGuidanceDDPMPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        out = pipeline(2, target={"position": 0.5}, num_inference_steps=5, generator=generator, output_type="np")
        images.append(out.images)
    return images


LOAD = """
import sys
if sys.argv[1] == "without":
    sys.modules["diffusers_multiguidance"] = None
    from diffusers import DiffusionPipeline
    def load(**kwargs):
        return DiffusionPipeline.from_pretrained("user/circles", trust_remote_code=True, **kwargs)
else:
    from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline
    def load(**kwargs):
        return MultiGuidanceDDPMPipeline.from_pretrained("user/circles", **kwargs)
import numpy as np, torch
for pipeline, file in ((load(revision=sys.argv[2]), sys.argv[3]), (load(), sys.argv[4])):
    generator = torch.Generator().manual_seed(0)
    out = pipeline(2, target={"position": 0.5}, num_inference_steps=5, generator=generator, output_type="np")
    np.save(file, out.images)
"""


@pytest.mark.parametrize("package", ["without", "with"])
def test_pipeline_loads_back(hub, circles, drawn, package, tmp_path):
    """By anyone, without a token; the older one too."""
    files = [tmp_path / "old.npy", tmp_path / "new.npy"]
    oldest = uploads(hub, "user/circles")[0]
    result = run(hub, tmp_path / "home", "-c", LOAD, package, oldest, *files, token=None)
    assert result.returncode == 0, result.stderr
    for file, expected in zip(files, drawn, strict=True):
        np.testing.assert_allclose(np.load(file), expected, rtol=0, atol=1e-4)
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-2


PUBLISH_OTHERWISE = """
import sys
from diffusers_multiguidance.hub.publish import publish
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline
pipeline = MultiGuidanceDDPMPipeline.from_pretrained(sys.argv[1])
publish(pipeline, "hidden", sys.argv[1], private=True)
publish(pipeline, "hidden", sys.argv[1], revision="draft")
pipeline.push_to_hub("pushed")
pipeline.unet.conv_in.bias.data += 1
pipeline.push_to_hub("user/pushed")  # keeps the card that is there
pipeline.push_to_hub("hidden")
"""


def test_private_branches_and_push_to_hub(hub, tiny, tmp_path):
    hub.requests.clear()
    result = run(hub, tmp_path / "home", "-c", PUBLISH_OTHERWISE, tiny)
    assert result.returncode == 0, result.stderr
    assert api(hub).repo_info("user/hidden").private
    assert not api(hub, token=False).repo_exists("user/hidden")
    assert files(hub, "user/hidden") == files(hub, "user/hidden", "draft") == PIPELINE_FILES | {"README.md"}
    assert sum(request.startswith("POST /api/models/user/pushed/commit/") for request in hub.requests) == 2
    made, kept = uploads(hub, "user/pushed")
    assert files(hub, "user/pushed", made) == files(hub, "user/pushed", kept) == PIPELINE_FILES | {"README.md"}
    cards = [card(hub, "user/pushed", made, tmp_path), card(hub, "user/pushed", kept, tmp_path)]
    assert cards[0].data.library_name == "diffusers"
    assert 'DiffusionPipeline.from_pretrained("user/pushed", trust_remote_code=True)' in cards[0].text
    assert 'target={"Smiling": 0.5}' in cards[0].text
    assert cards[1].content == cards[0].content
    assert card(hub, "user/hidden", "main", tmp_path).text.strip() == "# Tiny"


FIGURES = """---
model-index:
- name: Tiny
  results:
  - task: {type: unconditional-image-generation}
    dataset: {type: tiny, name: Tiny}
    metrics:
    - type: share
      value: 1
---
"""

REFUSED = """
import json, sys
from diffusers_multiguidance.hub.publish import publish
from diffusers_multiguidance.pipelines import MultiGuidanceDDPMPipeline
pipeline = MultiGuidanceDDPMPipeline.from_pretrained(sys.argv[2])
said = {}
for case, arguments in json.loads(sys.argv[1]).items():
    try:
        said[case] = publish(pipeline, **arguments) if "folder" in arguments else pipeline.push_to_hub(**arguments)
    except ValueError as error:
        said[case] = f"ValueError: {error}"
print(json.dumps(said))
"""


def test_what_is_refused(hub, tiny, tmp_path):
    """In one sentence, and nothing is there afterwards."""

    def changed(name: str, path: str, content: str | None) -> str:
        """A copy of the pipeline with another file, or without it."""
        folder = tmp_path / name
        shutil.copytree(tiny, folder)
        (folder / path).unlink(missing_ok=True)
        if content is not None:
            (folder / path).write_text(content)
        return str(folder)

    api(hub).create_repo("user/taken")
    api(hub).upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="user/taken")
    cases = {
        "no token": ({"token": None}, "`token` is missing; expected one with write access"),
        "unknown token": ({"token": "hf_unheardOf"}, "`token` is missing or not known to http"),
        "broken token": ({"token": f"{WRITE}\n"}, "`token` has a space, a line break or the like in it"),
        "read only": ({"token": READ}, "`repo_id` is 'user/new', which the `token` may not write"),
        "foreign": ({"repo_id": "other/new"}, "`repo_id` is 'other/new', which the `token` may not write"),
        "taken": ({"repo_id": "user/taken"}, "`repo_id` 'user/taken' is taken by something else; expected a name"),
        "no name": ({"repo_id": "user//new"}, "`repo_id` is 'user//new'; expected NAME or NAMESPACE/NAME."),
        "nothing": ({"folder": str(tmp_path / "nowhere")}, "`folder` is '.*nowhere'; expected a pipeline's folder"),
        "no card": ({"folder": changed("bare", "README.md", None)}, "`folder` '.*bare' has no README.md; expected"),
        "no metadata": (
            {"folder": changed("words", "README.md", "# Tiny\n")},
            "`folder` has a README.md whose metadata are not valid: there is none",
        ),
        "broken metadata": (
            {"folder": changed("yaml", "README.md", "---\nlicense: [\n---\n")},
            "`folder` has a README.md whose metadata are not valid: while parsing",
        ),
        "wrong metadata": (
            {"folder": changed("tags", "README.md", "---\ntags: [[1]]\n---\n")},
            '`folder` has a README.md whose metadata are not valid: .*"tags',
        ),
        "figures without a kind": (
            {"folder": changed("kind", "README.md", FIGURES.replace("type: share", "name: share"))},
            "`folder` has a README.md whose metadata are not valid: Invalid `model_index`",
        ),
        "figures without a value": (
            {"folder": changed("value", "README.md", FIGURES.replace("value: 1", "value:"))},
            r"`folder` has a README.md whose metadata are not valid: .*metrics\[0\]\.value.* is required",
        ),
        "token in the card": (
            {"folder": changed("secret", "README.md", f"---\nlicense: mit\n---\n{WRITE}\n")},
            "`folder` holds the token, in README.md; expected files that everyone may read",
        ),
    }
    before = set(hub.hub.repos)
    arguments = {
        case: {"folder": str(tiny), "repo_id": "user/new", "token": WRITE, **given}
        for case, (given, _) in cases.items()
    }
    (tmp_path / "home").mkdir()
    pushes = {
        case: arguments[case] for case in ("no token", "unknown token", "read only", "foreign", "taken", "no name")
    }
    for case, given in pushes.items():
        arguments[f"push: {case}"] = {name: value for name, value in given.items() if name != "folder"}
        cases[f"push: {case}"] = cases[case]
    result = run(hub, tmp_path / "home", "-c", REFUSED, json.dumps(arguments), tiny, token=None)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    for case, (_, pattern) in cases.items():
        assert said[case].startswith("ValueError: "), case
        assert "\n" not in said[case], case
        with pytest.raises(ValueError, match=pattern):
            raise ValueError(said[case])
    assert set(hub.hub.repos) == before
    assert files(hub, "user/taken") == {"config.json"}


PUBLISH_UNTIL = """
import sys
from diffusers_multiguidance import MultiGuidanceDDPMPipeline
from diffusers_multiguidance.hub.publish import publish
pipeline = MultiGuidanceDDPMPipeline.from_pretrained(sys.argv[1])
while True:
    try:
        publish(pipeline, "user/cut", sys.argv[1])
        print("done", flush=True)
        break
    except ValueError as error:
        print(error, flush=True)
        input()
"""


def test_cut_connection(tiny, tmp_path):
    """In the middle of a file and of the commit: nothing is there, and another try makes it whole."""
    with serve_hub(tmp_path / "hub") as hub:
        hub.cut = ("/lfs/",)
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISH_UNTIL, str(tiny)],
            env=environment(hub, tmp_path / "home", WRITE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for cut in (("/api/models/user/cut/commit/",), ()):
            sentence = process.stdout.readline()
            assert f"`repo_id` 'user/cut' was not written, as the connection to {hub.endpoint} broke (" in sentence
            assert files(hub, "user/cut") == set()
            hub.cut = cut
            process.stdin.write("\n")
            process.stdin.flush()
        stdout, stderr = process.communicate()
        assert stdout == "done\n", stderr
        assert not any(token in stderr for token in TOKENS)
        assert len(uploads(hub, "user/cut")) == 1
        assert files(hub, "user/cut") == PIPELINE_FILES | {"README.md"}


LOAD_DATA_SET = """
import sys
from datasets import load_dataset
dataset = load_dataset("user/circles-extremes", split="train")
first = next(iter(load_dataset("user/circles-extremes", split="train", streaming=True)))
assert first["source_index"] == dataset[0]["source_index"]
dataset.save_to_disk(sys.argv[1])
"""


@pytest.fixture(scope="module")
def extremes(hub, tmp_path_factory) -> Path:
    """Refused without a token, before anything is built; then built and pushed."""
    folder = tmp_path_factory.mktemp("extremes")
    build = [ROOT / "training" / "build_dataset.py", "--dataset", "circles", "--num_images", 60, "--resolution", 16]
    build += ["--attribute", "position", "--extremes", "--output_dir", folder / "set"]
    push = ["--push_to_hub", "--hub_dataset_id", "user/circles-extremes"]
    result = run(hub, folder / "home", *build, *push, token=None)
    assert result.returncode == 2
    assert "\nbuild_dataset.py: `token` is missing; expected one with write access" in "\n" + result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "set").exists()
    result = run(hub, folder / "home", *build, *push)
    assert result.returncode == 0, result.stderr
    return folder / "set"


def test_data_set_loads_back(hub, extremes, tmp_path):
    result = run(hub, tmp_path / "home", "-c", LOAD_DATA_SET, tmp_path / "loaded", token=None)
    assert result.returncode == 0, result.stderr
    loaded, built = load_from_disk(tmp_path / "loaded"), load_from_disk(extremes)
    assert loaded.features == built.features
    assert loaded["source_index"] == built["source_index"]
    assert loaded["position"] == built["position"]
    for left, right in zip(loaded["image"], built["image"], strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def test_data_set_has_its_card_and_pictures(hub, extremes, tmp_path):
    repo = {"repo_id": "user/circles-extremes", "repo_type": "dataset"}
    assert len(api(hub).list_repo_commits(**repo)) == 2, "the one that made it, and one with everything"
    pictures = {path.name for path in extremes.glob("*.png")}
    assert {"histogram_position.png", "kept_position.png"} <= pictures
    assert files(hub, **repo) == pictures | {"README.md", "provenance.json", "data/train-00000-of-00001.parquet"}
    folder = Path(api(hub).snapshot_download(**repo, local_dir=tmp_path))
    assert (folder / "provenance.json").read_text() == (extremes / "provenance.json").read_text()
    filesystem = HfFileSystem(endpoint=hub.endpoint, token=False)
    part = filesystem.cat_file(f"datasets/{repo['repo_id']}/provenance.json", start=4, end=20)
    assert part == (extremes / "provenance.json").read_bytes()[4:20], "a range is what it says"
    card = DatasetCard.load(folder / "README.md")
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert "diffusers-multiguidance" in card.data.tags
    for name in pictures:
        assert f"]({name})" in card.text
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 30


def test_training_script_pushes_what_it_trained(hub, extremes, tmp_path):
    """On the data set from the Hub."""
    words = "--resolution 16 --train_batch_size 4 --max_train_steps 2 --norm_num_groups 4 --attention_head_dim 8"
    words += " --layers_per_block 1 --block_out_channels 8 8 --attention_resolutions 8 --ddpm_num_steps 50"
    words += " --num_inference_steps 2 --push_to_hub --hub_model_id user/trained"
    script, out = ROOT / "training" / "train_unet.py", tmp_path / "unet"
    source = ["--dataset_name", "user/circles-extremes", "--output_dir", out]
    result = run(hub, tmp_path / "home", script, *source, *words.split())
    assert result.returncode == 0, result.stderr
    assert len(uploads(hub, "user/trained")) == 1
    folder = api(hub).snapshot_download("user/trained", local_dir=tmp_path / "loaded")
    loaded, trained = (MultiGuidanceDDPMPipeline.from_pretrained(place) for place in (folder, out / "pipeline"))
    for name, weight in trained.unet.state_dict().items():
        assert torch.equal(weight, loaded.unet.state_dict()[name])
    assert loaded.config["sampling_defaults"]["ddpm"]["num_inference_steps"] == 2
    card = ModelCard.load(Path(folder) / "README.md")
    assert card.data.library_name == "diffusers"
    assert 'Pipeline.from_pretrained("user/trained"' in card.text
    assert "target=" not in card.text
    assert "training/train_unet.py" in card.text
    assert "--dataset_name user/circles-extremes" in card.text

    words = "--resolution 16 --train_batch_size 4 --max_train_steps 2 --norm_num_groups 4 --attention_head_dim 8"
    words += " --layers_per_block 1 --block_out_channels 8 8 --attention_resolutions 8 --attributes position"
    words += " --push_to_hub --hub_model_id trained"  # an update, and in the user's namespace
    script, source[-1] = ROOT / "training" / "train_classifier.py", tmp_path / "classifiers"
    source += ["--pipeline", out / "pipeline"]
    result = run(hub, tmp_path / "home", script, *source, *words.split())
    assert result.returncode == 0, result.stderr
    assert len(uploads(hub, "user/trained")) == 2
    folder = api(hub).snapshot_download("user/trained", local_dir=tmp_path / "guided")
    assert MultiGuidanceDDPMPipeline.from_pretrained(folder).attributes == {"position": ["left", "right"]}
    card = ModelCard.load(Path(folder) / "README.md")
    assert 'Pipeline.from_pretrained("user/trained"' in card.text
    assert 'target={"position": 0.5}' in card.text


def test_tokens_are_nowhere(hub):
    """Neither in what the tests above left on the Hub, nor in an address."""
    contents = b"".join(path.read_bytes() for path in hub.hub.folder.iterdir())
    commits = [commit for repo in hub.hub.repos.values() for commit in repo.commits.values()]
    assert len(contents) > 0
    for token in TOKENS:
        assert token.encode() not in contents
        assert token not in str(commits)
        assert token not in str(hub.requests)


USE_CARD = """
import re, sys
from pathlib import Path
card = Path(sys.argv[1]).read_text()
example = card.split("```python\\n")[1].split("```")[0]
if sys.argv[2] == "without":
    sys.modules["diffusers_multiguidance"] = None
    (alone,) = re.findall("`(DiffusionPipeline.from_pretrained.*)`", card)
    example = "from diffusers import DiffusionPipeline\\npipe = " + alone + example[example.index("\\n# Smiling") :]
exec(example)
assert [len(images), len(unguided), images[0].size] == [16, 16, (8, 8)]
"""


def test_example_of_the_card_runs(hub, tiny, tmp_path):
    """On the Hub it names the repository, whatever the folder was; published, then run by anyone."""
    write_pipeline_card(tiny, unmeasured_facts("Tiny", ["Smiling"]), "runs/some/pipeline")
    local = (tiny / "README.md").read_text()
    result = run(hub, tmp_path / "home", MULTIGUIDANCE, "publish", tiny, "--repo-id", "example")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{hub.endpoint}/user/example/commit/{uploads(hub, 'user/example')[0]}"
    assert (tiny / "README.md").read_text() == local
    published = card(hub, "user/example", "main", tmp_path).content
    assert published == local.replace('"runs/some/pipeline"', '"user/example"')
    assert published.count('Pipeline.from_pretrained("user/example"') == 2
    (tmp_path / "card.md").write_text(published)
    for package in ("with", "without"):
        result = run(hub, tmp_path / "other", "-c", USE_CARD, tmp_path / "card.md", package, token=None)
        assert result.returncode == 0, result.stderr


def test_command_refuses_in_one_sentence(hub, tiny, tmp_path):
    publish = [MULTIGUIDANCE, "publish", tiny, "--repo-id"]
    result = run(hub, tmp_path / "home", *publish, "other/new")
    assert (result.returncode, result.stdout) == (2, "")
    sentence = result.stderr.splitlines()[-1]  # after the progress of loading
    assert sentence.startswith("multiguidance: `repo_id` is 'other/new', which the `token` may not write")
    assert "Traceback" not in result.stderr
