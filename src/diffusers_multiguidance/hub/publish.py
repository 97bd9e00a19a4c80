"""A pipeline or a data set on the Hub, in one commit: whatever goes wrong, nobody ever finds half of it there."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, ModelCard, get_token
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .card import unmeasured_facts, write_pipeline_card
from .errors import hub_errors

TEXTS = (".json", ".md", ".py", ".txt", ".yaml")
# Where the example of a card loads from: a folder while it lies there, the repository once it is on the Hub.
LOADS_FROM = re.compile(r'(?<=Pipeline\.from_pretrained\(")[^"\n]*')


def publish(
    pipeline: Any,
    repo_id: str,
    folder: str | Path | None = None,
    token: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Save a pipeline as it loads without this package, and upload it with its card, in one commit.

    A repository that holds an earlier version is updated; files of other names that lie on its top level stay. The
    card on the Hub says `Pipeline.from_pretrained("<repo_id>")`.

    Args:
        pipeline: a `MultiGuidanceDDPMPipeline`.
        repo_id: NAMESPACE/NAME, or a name in the namespace of the token's user.
        folder: where the pipeline was loaded from: its card, pictures and evaluators go along. Unless given, the card
            is that of the repository, or else a short one.
        token: with write access; from HF_TOKEN or `hf auth login` unless given.
        private: whether a new repository is.
        revision: branch to write, made from main where it is new; main unless given.

    Returns:
        URL of the commit.

    Raises:
        ValueError: where the card is missing or its metadata are wrong, the token is missing or has no right,
            `repo_id` is taken by something else, or the connection broke; in one sentence.
    """
    token = find_token(token)
    if folder is not None:
        if not (Path(folder) / "model_index.json").is_file():
            raise ValueError(f"`folder` is {str(folder)!r}; expected a pipeline's folder, with a model_index.json.")
        with hub_errors(repo_id):
            _check_card(Path(folder), "model")
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / (repo_id.split("/")[-1] if folder is None else Path(folder).resolve().name)
        if folder is not None:
            own = shutil.ignore_patterns("unet", "transformer", "vae", "classifiers", "scheduler", "*.py")
            shutil.copytree(folder, staged, ignore=own)
        pipeline.save_pretrained(staged)
        if folder is None:
            with hub_errors(repo_id):
                api = HfApi(token=token)
                user = "" if "/" in repo_id else api.whoami()["name"] + "/"
                try:
                    shutil.copy(api.hf_hub_download(user + repo_id, "README.md"), staged)
                except (RemoteEntryNotFoundError, RepositoryNotFoundError):
                    write_pipeline_card(staged, unmeasured_facts(staged.name, list(pipeline.attributes)), repo_id)
        class_name = type(pipeline).__name__
        return publish_folder(staged, repo_id, "model", "model_index.json", class_name, token, private, revision)


def check_publishable(repo_id: str) -> None:
    """Raise `ValueError` without a token, or for a name that no repository can have: known before any training."""
    find_token()
    with hub_errors(repo_id):
        validate_repo_id(repo_id)


def find_token(token: str | None = None) -> str:
    """The token, or else that of the environment.

    Raises:
        ValueError: where there is none, or one that can't be sent.
    """
    token = token or get_token()
    if not token:
        raise ValueError(
            "`token` is missing; expected one with write access: given, in HF_TOKEN or by `hf auth login`."
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("`token` has a space, a line break or the like in it; expected it without.")
    return token


def publish_folder(
    folder: Path,
    repo_id: str,
    repo_type: str,
    mark: str,
    mark_text: str,
    token: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Upload all files of a folder in one commit, in which they replace the subfolders of the same name.

    Args:
        folder: with a card, README.md.
        repo_id: NAMESPACE/NAME, or a name in the namespace of the token's user.
        repo_type: "model" or "dataset".
        mark: file by which a repository is known to hold an earlier version.
        mark_text: what stands in it.
        token: with write access; from HF_TOKEN or `hf auth login` unless given.
        private: whether a new repository is.
        revision: branch to write, made from main where it is new; main unless given.

    Returns:
        URL of the commit.

    Raises:
        ValueError: as `publish`.
    """
    token = find_token(token)
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {
        name.as_posix(): path
        for name, path in paths.items()
        if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
    }
    for name, path in files.items():
        if path.suffix in TEXTS and token in path.read_text(errors="replace"):
            raise ValueError(f"`folder` holds the token, in {name}; expected files that everyone may read.")
    with hub_errors(repo_id):
        _check_card(folder, repo_type)
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        there = api.list_repo_files(repo_id, repo_type=repo_type)
        if set(there) - {".gitattributes", "README.md"}:
            text = ""
            if mark in there:
                text = Path(api.hf_hub_download(repo_id, mark, repo_type=repo_type)).read_text()
            if mark_text not in text:
                raise ValueError(
                    f"`repo_id` {repo_id!r} is taken by something else; expected a name that is free or an earlier "
                    f"version, with {mark_text} in its {mark}."
                )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
            there = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)
        subfolders = {name.split("/")[0] for name in files if "/" in name}
        stale = [name for name in there if name not in files and name.split("/")[0] in subfolders]
        # Not `upload_folder`, which may make several commits of a slow upload.
        card = (folder / "README.md").read_text()
        if repo_type == "model":
            card = LOADS_FROM.sub(repo_id, card)
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in files.items() if name != "README.md"),
                CommitOperationAdd("README.md", card.encode()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"Upload {folder.resolve().name}",
            repo_type=repo_type,
            revision=revision,
        )
    return commit.commit_url


def _check_card(folder: Path, repo_type: str) -> None:
    path = folder / "README.md"
    if not path.is_file():
        raise ValueError(f"`folder` {str(folder)!r} has no README.md; expected a card.")
    try:
        card = (ModelCard if repo_type == "model" else DatasetCard).load(path)
        if not card.data.to_dict():
            raise ValueError("there is none")
        card.validate()
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"`folder` has a README.md whose metadata are not valid: {reason}") from error
