"""Render every measured figure: the tables of README.md and docs/, and the cards of the committed pipelines.

    python docs/render.py            # after a benchmark was run anew, and its JSON put into benchmarks/results
    python docs/render.py --check    # fails where anything differs from what stands there

`benchmarks/results/<name>.json` is what a script of benchmarks/ wrote; expressions call it by its name, with
underscores; `share`, `kld` and `over_seeds` put 95 % intervals beside them. `docs/tables.yaml` describes the tables,
which stand between `<!-- table: NAME -->` and `<!-- end table -->`; `model_cards/<pipeline>.yaml` the cards.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from scipy.stats import sem, t

from diffusers_multiguidance.evaluation.intervals import LEVEL, share_interval, uniformity_interval
from diffusers_multiguidance.evaluation.uniformity import kld_of
from diffusers_multiguidance.hub.card import fill_in, pipeline_card, read_facts

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(?<=<!-- table: )([\w-]+)( -->\n)(.*?)(?=<!-- end table -->)", re.DOTALL)


def render(root: Path = ROOT) -> dict[Path, str]:
    """The text that each of the files has to have.

    Raises:
        ValueError: for a table or card whose figures are not there, and a table that stands nowhere or is unknown.
    """
    results: dict[str, Any] = {"share": share, "kld": kld, "over_seeds": over_seeds}
    for path in (root / "benchmarks" / "results").glob("*.json"):
        content = json.loads(path.read_text())
        results[path.stem.replace("-", "_")] = {**content.pop("results"), **content}
    tables = {}
    for name, described in yaml.safe_load((root / "docs" / "tables.yaml").read_text()).items():
        try:
            tables[name] = table(described, results)
        except jinja2.TemplateError as error:
            raise ValueError(f"table '{name}' of docs/tables.yaml has no figures: {error}.") from error
    texts, shown = {}, set()
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        text = path.read_text()
        names = [match[1] for match in MARKED.finditer(text)]
        unknown = [name for name in names if name not in tables]
        if unknown or len(names) != text.count("<!-- table: "):
            raise ValueError(f"{path.name} shows the tables {unknown or names}; expected whole marks, of {[*tables]}.")
        shown.update(names)
        texts[path] = MARKED.sub(lambda match: f"{match[1]}{match[2]}{tables[match[1]]}", text)
    if set(tables) - shown:
        raise ValueError(f"table {(set(tables) - shown).pop()!r} stands nowhere; expected it in README.md or docs.")
    for path in sorted((root / "model_cards").glob("*.yaml")):
        folder = root / "pipelines" / path.stem
        texts[folder / "README.md"] = pipeline_card(folder, read_facts(path, results), f"pipelines/{path.stem}")
    return texts


def share(value: float, total: int) -> str:
    """A share of `total` images in percent, with its interval over images."""
    low, high = share_interval(round(value * total), total)
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def kld(figures: dict[str, Any]) -> str:
    """KLD to uniform over 100 bins of the `values` of images, with its interval over images."""
    low, high = uniformity_interval(np.array(figures["values"], dtype=np.float64), kld_of)
    return f"{figures['kld_to_uniform']:.3f} ({low:.3f} to {high:.3f})"


def over_seeds(rows: dict[str, Any], name: str) -> str:
    """A share of single classifiers in percent: mean, standard deviation and the mean's interval over their seeds.

    Args:
        rows: of `benchmarks/interpolation.py`, which has a row "classifier 0", "classifier 1", ... for each.
    """
    shares = 100 * np.array([row[name] for key, row in rows.items() if key.startswith("classifier ")])
    low, high = t.interval(LEVEL, len(shares) - 1, shares.mean(), sem(shares))
    mean, deviation = shares.mean(), shares.std(ddof=1)
    return f"{mean:.1f} ± {deviation:.1f} %, {len(shares)} seeds ({max(low, 0):.1f} to {min(high, 100):.1f})"


def table(described: dict[str, Any], results: dict[str, Any]) -> str:
    """Markdown: the caption, the rows, and the commands that measured them.

    Args:
        described: `columns` and `rows`, perhaps `each`, a list for every `row` of which `rows` are repeated, `caption`
            and `measured_by`, the commands.
    """
    rows = [described["columns"]]
    for row in fill_in(described.get("each", [None]), results):
        rows += fill_in(described["rows"], {**results, "row": row})
    lines = ["| " + " | ".join(map(str, row)).strip() + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(described["columns"]))
    parts = [fill_in(described["caption"], results).strip(), ""] if "caption" in described else []
    commands = fill_in(described.get("measured_by", []), results)
    return "\n".join([*parts, *lines, *(["", "```bash", *commands, "```"] if commands else [])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Write nothing.")
    check = parser.parse_args().check
    try:
        for path, text in render().items():
            if path.exists() and path.read_text() == text:
                continue
            name = path.relative_to(ROOT)
            if check:
                raise ValueError(f"{name} differs from its figures; expected what `python docs/render.py` writes.")
            path.write_text(text)
            print(f"wrote {name}")
    except (ValueError, OSError) as error:
        print(f"render.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
