"""Reports in the formats that the vendors document become figures; what a report lacks is no figure.

The texts are samples written for this test, shortened to what is read and a little around it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gatewright.errors import ToolFailed
from gatewright.hw.measurement import Measurement
from gatewright.targets.hls import reports
from gatewright.targets.hls.build import Layers

CSYNTH = """<?xml version="1.0"?><profile>
  <UserAssignments><TargetClockPeriod>10.00</TargetClockPeriod></UserAssignments>
  <PerformanceEstimates>
    <SummaryOfTimingAnalysis><EstimatedClockPeriod>7.250</EstimatedClockPeriod></SummaryOfTimingAnalysis>
    <SummaryOfOverallLatency><Worst-caseLatency>42</Worst-caseLatency><Interval-max>21</Interval-max></SummaryOfOverallLatency>
  </PerformanceEstimates>
  <AreaEstimates><Resources><BRAM_18K>3</BRAM_18K><DSP>7</DSP><FF>1200</FF><LUT>3400</LUT><URAM>0</URAM></Resources></AreaEstimates>
</profile>"""

UTILIZATION = """Copyright 1986-2023 Xilinx, Inc. All Rights Reserved.
| Design       : system_wrapper
| Device       : xc7z020clg400-1

1. Slice Logic
--------------
+----------------------------+-------+-------+------------+-----------+-------+
|          Site Type         |  Used | Fixed | Prohibited | Available | Util% |
+----------------------------+-------+-------+------------+-----------+-------+
| Slice LUTs                 | 12345 |     0 |          0 |     53200 | 23.20 |
|   LUT as Logic             | 11001 |     0 |          0 |     53200 | 20.68 |
| Slice Registers            | 20111 |     0 |          0 |    106400 | 18.90 |
+----------------------------+-------+-------+------------+-----------+-------+

2. Memory
---------
| Block RAM Tile |  4.5 |     0 |          0 |       140 |  3.21 |
|   RAMB36/FIFO* |    4 |     0 |          0 |       140 |  2.86 |

3. DSP
------
| DSPs           |   17 |     0 |          0 |       220 |  7.73 |
"""

TIMING = """Timing Summary Report

------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)
    -------      -------  ---------------------  -------------------      -------      -------
     {slack}        0.000                      0                63213        0.021        0.000
"""

PATH = """Timing Report

Slack (VIOLATED) :        -0.812ns  (required time - arrival time)
  Source:                 system_i/design/inst/design_U0/dense_resource_ap_fixed_config3_U0/mul_7_reg/C
                            (rising edge-triggered cell FDRE clocked by clk_fpga_0  {rise@0.000ns fall@5.000ns period=10.000ns})
  Destination:            system_i/design/inst/design_U0/layer3_out_U/mem_reg/D
  Data Path Delay:        10.600ns  (logic 5.1ns (48.1%)  route 5.5ns (51.9%))

Slack (MET) :             0.112ns  (required time - arrival time)
  Source:                 system_i/design/inst/design_U0/dense_resource_ap_fixed_config9_U0/x/C
"""


def counts(figures: dict[str, Measurement]) -> dict[str, float]:
    assert {figure.source for figure in figures.values()} <= {"synthesized"}
    return {name: figure.value for name, figure in figures.items() if figure.unit == name}


@pytest.mark.parametrize("dsp", ["DSP", "DSP48E"])
def test_csynth_of_vitis_and_of_vivado_hls(dsp: str, tmp_path: Path) -> None:
    (tmp_path / "csynth.xml").write_text(CSYNTH.replace("<DSP>7</DSP>", f"<{dsp}>7</{dsp}>"))
    figures = reports.csynth(tmp_path / "csynth.xml")
    assert counts(figures) == {"LUT": 3400, "FF": 1200, "DSP": 7, "BRAM": 1.5, "URAM": 0}
    assert figures["latency"].value == pytest.approx(420e-9)
    assert figures["throughput"].value == pytest.approx(1 / 210e-9)
    assert (figures["interval"].value, figures["latency_cycles"].value) == (21, 42)
    assert figures["clock"].value == pytest.approx(1e9 / 7.25)


def test_a_latency_that_hls_does_not_know_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "csynth.xml").write_text(CSYNTH.replace(">42<", ">undef<").replace(">21<", ">?<"))
    assert not {"latency", "throughput", "interval"} & set(reports.csynth(tmp_path / "csynth.xml"))


def test_a_report_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "csynth.xml").write_text("<profile>")
    with pytest.raises(ToolFailed, match="no report that can be read"):
        reports.csynth(tmp_path / "csynth.xml")
    with pytest.raises(ToolFailed, match=r"utilization\.rpt"):
        reports.utilization(tmp_path / "utilization.rpt")


def test_utilization_and_timing_of_vivado(tmp_path: Path) -> None:
    (tmp_path / "utilization.rpt").write_text(UTILIZATION)
    assert counts(reports.utilization(tmp_path / "utilization.rpt")) == {"LUT": 12345, "FF": 20111, "DSP": 17, "BRAM": 4.5}
    (tmp_path / "u.rpt").write_text(UTILIZATION.replace("Slice LUTs     ", "CLB LUTs*      ").replace("Slice Reg", "CLB Reg"))
    assert counts(reports.utilization(tmp_path / "u.rpt"))["LUT"] == 12345
    (tmp_path / "timing.rpt").write_text(TIMING.format(slack="0.500"))
    assert reports.timing(tmp_path / "timing.rpt", 10)["clock"].value == pytest.approx(1e9 / 9.5)
    (tmp_path / "timing.rpt").write_text(TIMING.format(slack="-0.812"))
    assert reports.slack_ns(tmp_path / "timing.rpt") == -0.812
    (tmp_path / "timing.rpt").write_text(TIMING.format(slack="NA"))
    assert reports.timing(tmp_path / "timing.rpt", 10) == {}


def test_the_worst_path_leads_to_its_layer(tmp_path: Path) -> None:
    (tmp_path / "critical_path.rpt").write_text(PATH)
    path = reports.worst_path(tmp_path / "critical_path.rpt")
    layers = Layers({"layer_2_dense": "fc1", "layer_8_dense": "fc2"}, {"3": "layer_2_dense", "9": "layer_8_dense"})
    assert layers.named_in(path) == ("'fc1' (layer_2_dense)",)


def test_layers_are_named_by_number_by_name_and_by_what_was_put_in() -> None:
    numbers = {"2": "layer_1_conv", "11": "zp2d_layer_1_conv", "13": "layer_12_dense"}
    layers = Layers({"layer_1_conv": "Conv_0", "layer_12_dense": "Gemm_5"}, numbers)
    line = "ERROR: [XFORM 203-504] Stop unrolling loop 'Product1' in function 'nnet::conv_2d_cl<array<ap_fixed<8, 4>, 2u>, config2>'"
    assert layers.named_in([line]) == ("'Conv_0' (layer_1_conv)",)
    assert layers.named_in(["ERROR: stream layer13_out is never read"]) == ("'Gemm_5' (layer_12_dense)",)
    assert layers.named_in(["ERROR: in zeropad2d_cl<config11>"]) == ("'Conv_0' (layer_1_conv)",)
    assert layers.named_in(["ERROR: config22 and layer_1_convolution_7"]) == ("'Conv_0' (layer_1_conv)",)
    assert layers.named_in(["ERROR: config1"]) == ()


def test_intel_hls(tmp_path: Path) -> None:
    lib = tmp_path / "reports" / "lib"
    lib.mkdir(parents=True)
    area = {"name": "System", "total": [5000, 7000, 12, 30, 4], "total_percent": [1, 2, 3, 4, 5]}
    (lib / "report_data.js").write_text(f"var loopsJSON={{}};var areaJSON={json.dumps(area)};\nvar fileJSON=[];")
    verified = {"functions": [{"name": "design", "data": ["28", "37,40,38", "1,2,1"]}]}
    (lib / "verification_data.js").write_text(f"var verifJSON={json.dumps(verified)};")
    clock = {"nodes": [{"clock": "TBD"}]}
    (lib / "quartus_data.js").write_text(f"var quartusJSON={json.dumps({'quartusFitClockSummary': clock})};")
    assert counts(reports.intel_hls(tmp_path)) == {"LUT": 5000, "FF": 7000, "BRAM": 12, "DSP": 30}
    fitted = {
        "quartusFitClockSummary": {"nodes": [{"clock": "180.5", "clock fmax": "200"}]},
        "quartusFitResourceUsageSummary": {"nodes": [{"alm": "1"}, {"alut": 4000, "reg": 6100, "dsp": 28, "ram": 9, "mlab": 2}]},
    }
    (lib / "quartus_data.js").write_text(f"var quartusJSON={json.dumps(fitted)};")
    figures = reports.intel_hls(tmp_path)
    assert counts(figures) == {"LUT": 4000, "FF": 6100, "DSP": 28, "BRAM": 9}
    assert figures["clock"].value == 200e6
    assert (figures["latency_cycles"].value, figures["interval"].value) == (40, 2)


def test_oneapi(tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "resources" / "json"
    folder.mkdir(parents=True)
    rows = [{"name": "Available", "data": [1, 1, 1, 1, 1]}, {"name": "Total", "data": [900, 1800, 7, 3, 0]}]
    (folder / "summary.ndjson").write_text("\n".join(map(json.dumps, rows)))
    loops = [{"name": "a", "af": "480.0", "ii": "1", "lt": "9.0"}, {"name": "b", "af": "400.0", "ii": "4", "lt": "31.0"}, {"name": "c"}]
    (folder / "loop_attr.ndjson").write_text("\n".join(map(json.dumps, loops)))
    figures = reports.oneapi(tmp_path)
    assert counts(figures) == {"LUT": 900, "FF": 1800, "BRAM": 7, "DSP": 3}
    assert (figures["clock"].value, figures["interval"].value, figures["latency_cycles"].value) == (400e6, 4, 31)


def test_catapult(tmp_path: Path) -> None:
    (tmp_path / "rtl.rpt").write_text(
        "  Processes/Blocks in Design\n    Process        Real Operation(s) count Latency Throughput Reset Length II Comments\n"
        "    -------------- ----------------------- ------- ---------- ------------ -- --------\n"
        "    /design/core                       812      19          4            0  4\n"
        "    Design Total:                      812      19          4            0  4\n"
    )
    (tmp_path / "vivado_concat_v").mkdir()
    (tmp_path / "vivado_concat_v" / "utilization_synth.rpt").write_text(UTILIZATION)
    (tmp_path / "vivado_concat_v" / "timing_summary_synth.rpt").write_text(TIMING.format(slack="1.000"))
    figures = reports.catapult(tmp_path, 5)
    assert (figures["latency_cycles"].value, figures["interval"].value, figures["LUT"].value) == (19, 4, 12345)
    assert figures["latency"].value == pytest.approx(19 * 5e-9)
    assert figures["clock"].value == pytest.approx(250e6)
