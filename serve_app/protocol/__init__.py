"""What ingress and engine replicas share: messages, the data channel that carries them, errors, signs of life."""
