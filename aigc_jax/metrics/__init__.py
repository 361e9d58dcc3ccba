"""What is measured of images: no knowledge of methods, no TensorFlow."""
