"""TF-IDF features, linear classifiers over them, and their ONNX graphs."""
