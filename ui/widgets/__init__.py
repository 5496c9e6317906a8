"""What all pages show things with: theme, icons (drawn from shapes), dialogs, elided labels, items of two_lines."""
