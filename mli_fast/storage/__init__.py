"""A result's dataset to and from files (.nc, .json, .csv), bit for bit; and how its points are laid out."""

from mli_fast.storage.files import check_folder, check_target, load_dataset, save_dataset
from mli_fast.storage.layout import all_columns, layout_of

__all__ = ["all_columns", "check_folder", "check_target", "layout_of", "load_dataset", "save_dataset"]
