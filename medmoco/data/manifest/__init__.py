"""CSV to rows, labels, patients and splits."""
