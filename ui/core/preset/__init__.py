"""A preset in the window: its options (schema, field), its values (document, comparison; entries: those of
data.folders), its files, and how their list is divided (groups)."""
