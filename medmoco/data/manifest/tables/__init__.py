"""Tables as people have them: other column names, JSON lines, joined tables, paths of other systems, label cells."""
