"""From a folder of images to a manifest and settings that suit the data and the machine."""
