"""What `import medmoco` offers: the functions behind the commands, with the same names and the same defaults."""
