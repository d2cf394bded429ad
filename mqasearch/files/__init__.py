"""Files and folders that are there whole or not at all."""

from mqasearch.files.folders import check_output, new_folder, temporary_folder, whole_folder
from mqasearch.files.text_files import write_whole

__all__ = ["check_output", "new_folder", "temporary_folder", "whole_folder", "write_whole"]
