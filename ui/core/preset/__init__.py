"""A preset in the window: its options (schema, field), its values (document, comparison), its
files, and how their list is divided (groups)."""
