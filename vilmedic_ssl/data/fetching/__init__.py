"""Files from elsewhere: packages by pip or npm, single files by https; checked, or not kept."""
