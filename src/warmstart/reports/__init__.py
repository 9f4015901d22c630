"""What people look at after a training: learning curves as a picture, a comparison as plain text."""
