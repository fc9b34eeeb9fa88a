from __future__ import annotations

from pathlib import Path

from tests.helpers.dataset_files import go, labels, put

COVID = """patientid,offset,sex,age,finding,view,modality,folder,filename,license,clinical_notes
2,0,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,images,a.jpg,CC BY,"two
lines"
2,3,M,65,Pneumonia/Viral/COVID-19,L,X-ray,images,b.jpg,CC BY,
4,0,F,,Pneumonia,AP,X-ray,images,c.jpg,,
5,0,F,7.5,No Finding,AP,X-ray,images,d.jpg,,
6,0,,,todo,PA,X-ray,images,e.jpg,,
7,0,,,Pneumonia/Bacterial/Klebsiella,PA,X-ray,images,f.jpg,,
8,0,,,Pneumonia/Viral/COVID-19,Axial,CT,volumes,g.nii.gz,,
"""


def test_prepare__findings_are_a_tree(tmp_path: Path) -> None:
    more = "".join(f"{number},0,,,Tuberculosis,PA,X-ray,images,{number}.jpg,,\n" for number in range(20, 50))
    files = go("covid19_image_data", put(tmp_path / "source", {"metadata.csv": COVID + more}))
    table = files["all"]
    names = ["Pneumonia", "Viral", "COVID-19", "Bacterial", "Klebsiella", "No Finding"]
    assert labels(table, "images/a.jpg", names) == ["1", "1", "1", "0", "0", "0"]
    assert labels(table, "images/c.jpg", names) == ["1", "", "", "", "", "0"]
    assert labels(table, "images/d.jpg", names) == ["0", "0", "0", "0", "0", "1"]
    assert labels(table, "images/e.jpg", names) == [""] * 6
    assert labels(table, "images/f.jpg", names) == ["1", "0", "0", "1", "1", "0"]
    assert table.loc["images/d.jpg", ["Age", "Sex", "ViewPosition"]].tolist() == ["7", "F", "AP"]
    assert table.loc["images/a.jpg", "Split"] == table.loc["images/b.jpg", "Split"]
    assert files["left_out"].to_numpy().tolist() == [["volumes/g.nii.gz", "modality CT, not a radiograph"]]


def test_prepare__its_first_version(tmp_path: Path) -> None:
    text = 'Patientid,offset,sex,age,finding,view,date, url,filename,license\n1,,,,"COVID-19, ARDS",PA,2020,u,a.jpg,\n'
    text += "".join(f"{number},,,,SARS,CT,2020,u,{number}.jpg,\n" for number in range(2, 4))
    text += "".join(f"{number},,,,SARS,PA,2020,u,{number}.jpg,\n" for number in range(4, 40))
    files = go("covid19_image_data", put(tmp_path / "source", {"metadata.csv": text}))
    assert labels(files["all"], "images/a.jpg", ["COVID-19", "ARDS", "SARS"]) == ["1", "1", "0"]
    assert len(files["left_out"]) == 2
