"""Synonyms of column names: `Patient ID`, `patient_id` and `subject` all mean PatientID.

Case, spaces and punctuation are ignored. The synonyms come from public data sets (ChestX-ray14, CheXpert, PadChest,
MIMIC-CXR, VinDr, RSNA, SIIM, EMBED, BIDS), from DICOM and from trial databases. Ambiguous names, such as "case", are
not included: commands warn anyway if a table has no patient column.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

PATIENT, STUDY, SERIES = "PatientID", "StudyID", "SeriesInstanceUID"

IDENTIFYING = ("Path", PATIENT, STUDY, SERIES)
"""Columns whose cells must not be shown."""

_PERSON = r"patients?|patienten|paciente|subjects?|participants?"
_NUMBER = r"s?(?:id|ids|no|nr|num|number|nummer|code|key|uid|uuid|guid|identifier|index|idx|hash|pseudonym|name)"
_HIDDEN = r"anon|anonymi[sz]ed|deid|deidentified|pseudo|pseudonymi[sz]ed|hashed|hash"

_PATTERNS: dict[str, tuple[str, ...]] = {
    PATIENT: (
        r"patients?id",
        rf"(?:{_HIDDEN}|unique|study|research|original|new)?(?:{_PERSON})(?:{_NUMBER})?(?:{_HIDDEN})?",
        rf"(?:{_HIDDEN})?(?:pat|pt|subj|usubj|person){_NUMBER}(?:{_HIDDEN})?",
        rf"(?:id|no|nr|number|nummer|numero)(?:of|de|del|du)?(?:the)?(?:{_PERSON})",
        r"pid|mrn|(?:e?mpi|mrn)(?:anon)?|(?:medical|hospital)(?:record)?(?:number|no|id)|pseudonym|pseudoid|00100020",
    ),
    STUDY: (
        r"study(?:instance)?(?:id|uid|no|nr|number|key|code)?(?:anon)?|studies",
        r"accession(?:id|no|nr|num|number)?(?:anon)?|acc(?:no|num|anon)|exam(?:ination)?(?:id|no|number|uid)",
    ),
    SERIES: (r"series(?:instance)?(?:id|uid|no|nr|number)?(?:anon)?",),
    "Path": (
        r"[a-z]*paths?",
        r"[a-z]*filenames?|(?:image|img|dicom|dcm|png|jpe?g)?files?|filelocation|(?:image|img)name",
        r"(?:image|img|dicom|dcm)(?:id|index|idx)?|images",
    ),
    "Split": (
        r"(?:data|official)?splits?(?:name|id)?|trainvaltest|traintest|trainvalidtest|trainortest",
        r"(?:sub)?set(?:id|name|type)?|partition|usage|phase|fold",
    ),
    "Frame": (r"frame(?:no|nr|num|number|id|index|idx)?|page(?:no|nr|num|number)?",),
    "ViewPosition": (r"view(?:pos|position|projection)?|projection|appa|paap|frontallateral",),
    "Sex": (r"(?:patients?)?(?:sex|gender)",),
    "Age": (r"(?:patients?)?age(?:in)?(?:y|yrs|years)?",),
    "Laterality": (r"(?:image)?laterality|side|leftright",),
}
"""Reserved column -> patterns of its synonyms in lower-case letters and digits, the most likely first."""


def meaning(name: str) -> tuple[str, int] | None:
    """Return the reserved column that a name means and the rank of the matching pattern; None if it means none."""
    plain = "".join(letter for letter in name.casefold() if letter.isalnum())
    plain = plain.removesuffix("dicom") or plain  # PadChest adds it to columns taken from DICOM headers
    for column, patterns in _PATTERNS.items():
        for rank, pattern in enumerate(patterns):
            if re.fullmatch(pattern, plain):
                return column, rank
    return None


def other_name(column: str, names: Iterable[str], labels: Collection[str] = ()) -> str | None:
    """Return the most likely synonym of a column among the names of a table, except labels; None if there is none."""
    target = meaning(column)
    if target is None:
        return None
    ranks = {
        name: means[1] for name in names if name not in labels and (means := meaning(name)) and means[0] == target[0]
    }
    return min(ranks, key=lambda name: (ranks[name], name != target[0]), default=None)
