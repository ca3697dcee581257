"""A result's dataset to and from files (.nc, .json, .csv), bit for bit in every format."""

from mli_fast.storage.files import check_folder, check_target, load_dataset, save_dataset
from mli_fast.storage.table import split_columns

__all__ = ["check_folder", "check_target", "load_dataset", "save_dataset", "split_columns"]
