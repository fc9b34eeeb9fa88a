"""What `medmoco check` finds in rows and files."""
