"""What the page shows of each committed pipeline before the first click: a sweep of one seed, and what was measured.

`python spaces/interpolation/opening.py` generates all of them anew, into `opening/`.
"""

import json
import math
from dataclasses import replace

import numpy as np
from PIL import Image
from sampling import MODELS, OPENING, Sweep, sample
from settings import Settings, defaults

from diffusers_multiguidance.utils.files import replace_folder

FRAMES = 9


def generate_sweep(settings: Settings) -> Sweep:
    """Along the first attribute, with the others left free."""
    along, *_ = settings.targets
    call, requested = replace(settings, targets=dict.fromkeys(settings.targets)).sweep(along, FRAMES)
    *_, last = sample(**call)
    return Sweep(along, last.images, requested, last.values[along].astype(float).round(4).tolist())


def main() -> None:
    entries = {}
    with replace_folder(OPENING) as folder:
        for name, model in MODELS.items():
            if not model.attributes:
                continue
            sweep = generate_sweep(defaults(model))
            strip = np.concatenate(sweep.images, axis=1)
            Image.fromarray(strip.squeeze()).save(folder / f"{name}.png", optimize=True)
            values = [None if math.isnan(value) else value for value in sweep.values]
            entries[name] = {"along": sweep.along, "requested": sweep.requested, "values": values}
            print(f"{name}: requested {sweep.requested}, measured {values}")
        (folder / "values.json").write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
