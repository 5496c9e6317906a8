"""What all pages show things with: theme, icons, dialogs, elided labels, items of two_lines."""
