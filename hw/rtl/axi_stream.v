// A network between two AXI4-Streams (Arm IHI 0051) of BUS bits, one sample in as many beats as it takes, its bit 0 lowest in the first
// beat. A packet is any number of samples and ends with tlast, which its last result's last beat gives back; the next packet is let
// in then. The beats of a sample that tlast cuts short are dropped.
module axi_stream #(parameter IN_BITS = 1, parameter OUT_BITS = 1, parameter BUS = 64) (
  input wire clk, input wire rst,
  input wire [BUS-1:0] s_axis_tdata, input wire s_axis_tvalid, output wire s_axis_tready, input wire s_axis_tlast,
  output wire [BUS-1:0] m_axis_tdata, output wire m_axis_tvalid, input wire m_axis_tready, output wire m_axis_tlast,
  output wire in_valid, input wire in_ready, output wire [IN_BITS-1:0] in_data,
  input wire out_valid, output wire out_ready, input wire [OUT_BITS-1:0] out_data
);
  localparam IN_BEATS = (IN_BITS + BUS - 1) / BUS, OUT_BEATS = (OUT_BITS + BUS - 1) / BUS;
  localparam IN_COUNT = $clog2(IN_BEATS + 1), OUT_COUNT = $clog2(OUT_BEATS + 1);

  reg [IN_BEATS*BUS-1:0] sample;
  reg [IN_COUNT-1:0] beats;  // of the sample that is coming
  reg full;                  // it is whole, and the network has not taken it
  reg ended;                 // the packet's last beat has come, and its last result has not gone to the output
  reg [15:0] under_way;         // samples that the network has taken and not given

  assign in_valid = full;
  assign in_data = sample[IN_BITS-1:0];
  wire taken = full & in_ready;
  assign s_axis_tready = (~full | in_ready) & ~ended;
  wire accepted = s_axis_tvalid & s_axis_tready;
  wire completes = accepted & (beats == IN_BEATS - 1);

  reg [OUT_BEATS*BUS-1:0] result;
  reg [OUT_COUNT-1:0] left;  // beats still to give
  reg last;                  // it is the packet's last
  assign m_axis_tvalid = left != 0;
  assign m_axis_tdata = result[BUS-1:0];
  assign m_axis_tlast = last & (left == 1);
  wire given = m_axis_tvalid & m_axis_tready;
  assign out_ready = (left == 0) | (given & (left == 1));
  wire loaded = out_valid & out_ready;
  wire is_last = ended & ~full & (under_way == 16'd1);

  always @(posedge clk)
    if (rst) begin
      beats <= 0;
      full <= 1'b0;
      ended <= 1'b0;
      under_way <= 16'd0;
      left <= 0;
      last <= 1'b0;
    end else begin
      if (accepted) begin
        sample <= {s_axis_tdata, sample} >> BUS;
        beats <= completes | s_axis_tlast ? 0 : beats + 1'b1;
      end
      full <= completes | (full & ~taken);
      // A packet that ends where no sample is under way has nothing to give back.
      if (loaded & is_last) ended <= 1'b0;
      else if (accepted & s_axis_tlast) ended <= completes | (full & ~taken) | taken | (under_way > loaded);
      under_way <= under_way + taken - loaded;
      if (loaded) begin
        result <= out_data;
        left <= OUT_BEATS;
        last <= is_last;
      end else if (given) begin
        result <= result >> BUS;
        left <= left - 1'b1;
      end
    end
endmodule
