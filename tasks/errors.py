"""The error for wrong input to a task; media that cannot be read raise `tokenizers_av.MediaError` instead."""


class InputError(ValueError):
    """A value a caller gave cannot be used; the message is one line that says what would be right."""
