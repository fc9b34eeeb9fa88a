"""Data sets of other kinds, and layouts: MedMNIST, class folders, DICOM trees."""
