from __future__ import annotations

from pathlib import Path

from tests.helpers.dataset_files import go, labels, put


def test_prepare__labels_ages_and_sexes(tmp_path: Path) -> None:
    shenzhen, montgomery = "ChinaSet_AllFiles", "MontgomerySet"
    texts = {
        f"{shenzhen}/ClinicalReadings/CHNCXR_0001_0.txt": "male 45yrs\nnormal",
        f"{shenzhen}/ClinicalReadings/CHNCXR_0330_1.txt": "female , 9 months\r\nbilateral PTB",
        f"{montgomery}/ClinicalReadings/MCUCXR_0001_0.txt": "Patient's Sex: F\nPatient's Age: 027Y\nnormal",
        f"{montgomery}/NLM-Montgomery-CXRSet-ReadMe.txt": "read me",
    }
    texts |= {f"{shenzhen}/ClinicalReadings/CHNCXR_{number:04d}_1.txt": "Male 30yrs" for number in range(400, 430)}
    source = put(tmp_path / "source", texts)
    table = go("shenzhen_montgomery_tb", source)["all"]
    assert len(table) == 33
    columns = ["Sex", "Age", "Hospital", "Tuberculosis"]
    assert labels(table, f"{shenzhen}/CXR_png/CHNCXR_0001_0.png", columns) == ["M", "45", "Shenzhen", "0"]
    assert labels(table, f"{shenzhen}/CXR_png/CHNCXR_0330_1.png", columns) == ["F", "0", "Shenzhen", "1"]
    assert labels(table, f"{montgomery}/CXR_png/MCUCXR_0001_0.png", columns) == ["F", "27", "Montgomery", "0"]
    put(source, {f"{montgomery}/{folder}/MCUCXR_0001_0.png": "" for folder in ("CXR_png", "ManualMask/leftMask")})
    found = go("shenzhen_montgomery_tb", source)
    assert found["all"].index.tolist() == [f"{montgomery}/CXR_png/MCUCXR_0001_0.png"]
