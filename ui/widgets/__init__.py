"""What all pages show things with: theme, icons (drawn from shapes), images, dialogs, elided labels, items of two_lines,
and making, which has rows, columns and buttons.
"""
