"""Chats as documents: a data source yields one, and a model with a chat template of its own words it itself."""

from collections.abc import Sequence

Turn = dict[str, str]  # role and content, as transformers' chat templates know them


class Chat(str):
    """The text of a chat, a paragraph `role: content` a turn, with the turns themselves beside it."""

    turns: Sequence[Turn]

    def __new__(cls, turns: Sequence[Turn]) -> "Chat":
        chat = super().__new__(cls, "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns))
        chat.turns = turns
        return chat
