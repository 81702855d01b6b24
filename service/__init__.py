"""How a model is served: FastAPI, ONNX Runtime, in-process batching. Never torch."""
