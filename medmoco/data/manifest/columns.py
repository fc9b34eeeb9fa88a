"""The one place that decides what a column's name means: `Patient ID`, `patient_id` and `subject` all mean PatientID.

Case, spaces and punctuation do not count. The other names are those of public tables (ChestX-ray14, CheXpert, PadChest,
MIMIC-CXR, VinDr, RSNA, SIIM, EMBED, BIDS), of DICOM and of trial databases. A name that may mean something else, such
as "case", is not among them: commands say anyway when a table names no patient.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

PATIENT, STUDY = "PatientID", "StudyID"

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
"""Reserved column -> what its other names look like in small letters and digits, the likeliest first."""


def meaning(name: str) -> tuple[str, int] | None:
    """Return the reserved column that a name stands for and how far down its list it is; None where it is none."""
    plain = "".join(letter for letter in name.casefold() if letter.isalnum())
    plain = plain.removesuffix("dicom") or plain  # PadChest's, of what it has from headers
    for column, patterns in _PATTERNS.items():
        for place, pattern in enumerate(patterns):
            if re.fullmatch(pattern, plain):
                return column, place
    return None


def other_name(column: str, names: Iterable[str], labels: Collection[str] = ()) -> str | None:
    """Return the name that stands for a column which is not among the names; None where there is none.

    Args:
        column: Reserved, or any name for one.
        names: Of a table's columns.
        labels: Those that are labels, and so stand for nothing else.
    """
    wanted = meaning(column)
    if wanted is None:
        return None
    found = {
        name: means[1] for name in names if name not in labels and (means := meaning(name)) and means[0] == wanted[0]
    }
    return min(found, key=lambda name: found[name], default=None)
