"""What all pages show things with: theme, icons, images, dialogs, elided labels,
drops of files, two_lines of items, making, which has rows, columns and buttons.
"""
