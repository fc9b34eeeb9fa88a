"""What a section of a report says, as text."""

from __future__ import annotations

from collections.abc import Iterator

from medmoco.reporting.blocks import NO_BREAK, Block, Fold, Group, Listing, Plot, Section, Table, Text


def blocks_of(section: Section) -> Iterator[Block]:
    for block in [*section.blocks, *(block for part in section.sections for block in part.blocks)]:
        yield from _inside(block)


def _inside(block: Block) -> Iterator[Block]:
    yield block
    if isinstance(block, Fold | Group):
        for inner in block.blocks:
            yield from _inside(inner)
    if isinstance(block, Plot):
        yield block.table


def plots_of(section: Section) -> list[Plot]:
    return [block for block in blocks_of(section) if isinstance(block, Plot)]


def tables_of(section: Section) -> list[Table]:
    return [block for block in blocks_of(section) if isinstance(block, Table)]


def missing_of(section: Section) -> list[str]:
    return [block.text for block in blocks_of(section) if isinstance(block, Text) and block.kind == "missing"]


def words_of(section: Section) -> str:
    """Return every word, ordinary spaces only."""
    lines = [section.title, *(part.title for part in section.sections)]
    for block in blocks_of(section):
        if isinstance(block, Text | Listing):
            lines.append(block.text)
        elif isinstance(block, Plot):
            lines += [block.caption, block.alt]
        elif isinstance(block, Fold):
            lines.append(block.summary)
        elif isinstance(block, Table):
            lines += [block.caption, *(" | ".join(row) for row in [block.head, *block.rows])]
    return "\n".join(lines).replace(NO_BREAK, " ")
