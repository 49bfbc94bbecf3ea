"""Other people's files: folders of diffusers, in and out."""
