"""Images that are read and decoded when a step needs them: files, crops, threads."""
