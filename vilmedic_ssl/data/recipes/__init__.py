"""How each data set is made from its archive; the table of them is in `download.py`."""
