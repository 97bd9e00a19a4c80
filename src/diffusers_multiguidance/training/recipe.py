"""Command lines of the scripts: flags and recipes from one dataclass of settings, and errors without a traceback."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from ..utils.exits import exit_codes
from .settings import Settings

SettingsType = TypeVar("SettingsType", bound=Settings)


def run_script(function: Callable[[SettingsType], Any], settings_class: type[SettingsType], section: str) -> None:
    """Call `function` with the settings of the command line, ending as `exit_codes` says.

    Args:
        section: of recipes, named like the script.
    """
    with exit_codes(f"{section}.py"):
        function(parse(settings_class, section, sys.argv[1:]))


def parse(settings_class: type[SettingsType], section: str, argv: list[str]) -> SettingsType:
    """Settings from flags, after those that `section` of the `--recipe` file gives.

    Raises:
        ValueError: for the first flag, or key of the recipe, that is unknown, missing or wrong.
    """
    parser = _Parser(settings_class, prog=f"{section}.py", description=sys.modules["__main__"].__doc__)
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml", help="Gives settings; flags win over it.")
    names = [field.name for field in fields(settings_class)]
    finder = _Parser(prog=f"{section}.py", add_help=False)
    finder.add_argument("--recipe", type=Path)
    recipe = finder.parse_known_args(argv)[0].recipe
    words: list[str] = []
    for key, value in (read_section(recipe, section) if recipe else {}).items():
        if key not in names:
            raise ValueError(f"`--recipe` {recipe} sets {key!r} of {section}; expected {_nearest(str(key), names)}.")
        if value is not None:  # a recipe takes back what the one that it extends says
            words += [f"--{key}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    settings, *_, unknown = parser.parse_args_into_dataclasses(
        [*words, *argv], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        if not unknown[0].startswith("--"):
            raise ValueError(f"{unknown[0]!r} is a value too many; expected a flag, or a single value for one.")
        name = unknown[0].split("=")[0].removeprefix("--")
        raise ValueError(f"{unknown[0]!r} is no flag of {section}.py; expected {_nearest(name, names)}.")
    return settings


def read_section(recipe: Path, section: str) -> dict[str, Any]:
    """The settings of one section of a recipe.

    A recipe is a YAML mapping with a section for each script. With `extends: other.yaml` the sections of that file, in
    the same folder, lie under its own.
    """
    sections = _read_recipe(recipe, [])
    if section not in sections:
        raise ValueError(f"`--recipe` {recipe} has no section '{section}'; expected a mapping of settings under it.")
    return sections[section]


def _read_recipe(path: Path, above: list[Path]) -> dict[str, dict[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"`--recipe` is {str(path)!r}; expected a readable file ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"`--recipe` is {str(path)!r}; expected valid YAML.") from error
    base = content.pop("extends", None) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise ValueError(f"`--recipe` {path} holds something else; expected a mapping of settings for each script.")
    if base is None:
        return content
    if path in above:
        raise ValueError(f"`--recipe` {path} extends itself; expected a chain of files that ends.")
    under = _read_recipe(path.parent / str(base), [*above, path])
    return {name: {**under.get(name, {}), **content.get(name, {})} for name in [*under, *content]}


def command_line(settings: Settings, section: str) -> str:
    """The command that gives these settings, with every flag that isn't at its default; for cards."""
    words = ["accelerate", "launch", f"training/{section}.py"]
    for field in fields(settings):
        value = getattr(settings, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value is not None and value != default:
            words += [f"--{field.name}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return shlex.join(words)


def _nearest(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    return f"one of its settings, like {near[0]!r}" if near else "one of its settings, which --help lists"


def _path(word: str) -> Path:
    if not word:
        raise argparse.ArgumentTypeError("expected a path, not an empty word")  # which would mean this folder
    return Path(word)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


class _Parser(HfArgumentParser):
    """Lists may be empty, flags are written out, and an error is one sentence, without all flags before it."""

    def __init__(self, settings_class: type[Settings] | None = None, **options: Any) -> None:
        super().__init__(settings_class, formatter_class=_Help, allow_abbrev=False, **options)

    def add_argument(self, *names: Any, **options: Any) -> Any:
        if options.get("nargs") == "+":
            options["nargs"] = "*"
        if options.get("type") is Path:
            options["type"] = _path
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)(/--[\w-]+)*", r"`\1`", message)
        raise ValueError(message.removeprefix("argument ") + ".")
