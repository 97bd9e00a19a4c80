"""Train the denoiser on extremes.

    accelerate launch training/train_unet.py --recipe training/recipes/circles-32.yaml

Writes checkpoints, sample grids and, at the end, an unguided pipeline to `<output_dir>/pipeline`.
"""

from diffusers_multiguidance.utils.exits import exit_codes

if __name__ == "__main__":
    with exit_codes("train_unet.py"):  # also while it imports, which takes seconds
        from diffusers_multiguidance.training.denoiser import DenoiserSettings, train_denoiser
        from diffusers_multiguidance.training.recipe import run_script

        run_script(train_denoiser, DenoiserSettings, section="train_unet")
