"""Build a data set, keep its extremes, and save or push it with a data card.

    python training/build_dataset.py --recipe training/recipes/circles-32.yaml
    accelerate launch training/build_dataset.py --dataset faces --num_images 30000 --attribute Smiling --extremes \\
        --output_dir runs/smiling
    python training/build_dataset.py --dataset images --train_data_dir photos --label_column label --extremes \\
        --output_dir runs/mine

With several attributes an image must be extreme in each. What is extreme is decided by a known factor (rendered data),
by networks that learn noisy labels (paper, appendix D.1), by a column of scores, or by a zero-shot model's prompts.
A build that was killed goes on where it was when the same command is given again.
"""

from diffusers_multiguidance.utils.exits import exit_codes

if __name__ == "__main__":
    with exit_codes("build_dataset.py"):  # also while it imports, which takes seconds
        from diffusers_multiguidance.curation.build import DatasetSettings, build_dataset
        from diffusers_multiguidance.training.recipe import run_script

        run_script(build_dataset, DatasetSettings, section="build_dataset")
