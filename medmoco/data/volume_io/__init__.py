"""Read volumes: NIfTI, NRRD, MetaImage and DICOM series, to patient-oriented arrays and their canvases."""
