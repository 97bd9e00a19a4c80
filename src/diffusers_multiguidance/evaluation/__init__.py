"""Measures of generated images: they see arrays and know no pipeline."""
