"""What `medmoco doctor` checks."""
