"""Small parts that know nothing of qwenctl."""
