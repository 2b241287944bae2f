// A network behind a line of bytes. Every request is answered by exactly one reply, so the host is in charge of the pace.
//
//   frame    0x55, kind, payload, CRC high, CRC low        CRC-16/CCITT-FALSE over kind and payload
//   "R"      request: IN_BYTES of samples' bits            reply: "R" and OUT_BYTES
//   "I"      request: no payload                           reply: "I" and IDENTITY, least significant byte first
//   "E"      reply to a frame with a wrong CRC or an unknown kind; no payload
//
// Payloads are little endian: bit 0 of the first byte is bit 0 of in_data. `got` is 1 for one cycle per received byte; a byte
// is sent in a cycle in which `sending` and `can_send` are 1. `forget` drops a request of which only a part has come.
module frames #(parameter IN_BYTES = 1, parameter OUT_BYTES = 1, parameter [31:0] IDENTITY = 32'h0) (
  input wire clk, input wire rst,
  input wire got, input wire [7:0] byte_in, input wire forget,
  output wire sending, input wire can_send, output reg [7:0] byte_out,
  output wire in_valid, input wire in_ready, output wire [IN_BYTES*8-1:0] in_data,
  input wire out_valid, output wire out_ready, input wire [OUT_BYTES*8-1:0] out_data
);
  localparam [7:0] MARK = 8'h55, RUN = "R", IDENTIFY = "I", ERROR = "E";
  localparam REPLY_BYTES = OUT_BYTES > 4 ? OUT_BYTES : 4;
  localparam MOST_BYTES = IN_BYTES > REPLY_BYTES ? IN_BYTES : REPLY_BYTES;
  localparam COUNT_BITS = $clog2(MOST_BYTES + 1);
  localparam [3:0] WAIT_MARK = 0, WAIT_KIND = 1, PAYLOAD = 2, CRC_HIGH = 3, CRC_LOW = 4, OFFER = 5, COMPUTE = 6,
    SEND_MARK = 7, SEND_KIND = 8, SEND_PAYLOAD = 9, SEND_HIGH = 10, SEND_LOW = 11;

  reg [3:0] state;
  assign sending = state >= SEND_MARK;

  reg [7:0] kind;
  reg [COUNT_BITS-1:0] left;
  reg [IN_BYTES*8-1:0] request;
  reg [REPLY_BYTES*8-1:0] reply;
  reg [15:0] crc;
  wire [15:0] crc_next;
  crc16 sum (.crc(crc), .data(sending ? byte_out : byte_in), .next_crc(crc_next));

  assign in_valid = state == OFFER;
  assign in_data = request;
  assign out_ready = state == COMPUTE;

  always @*
    case (state)
      SEND_MARK: byte_out = MARK;
      SEND_KIND: byte_out = kind;
      SEND_HIGH: byte_out = crc[15:8];
      SEND_LOW: byte_out = crc[7:0];
      default: byte_out = reply[7:0];
    endcase

  always @(posedge clk)
    if (rst)
      state <= WAIT_MARK;
    else if (~sending & got)
      case (state)
        WAIT_MARK: begin
          crc <= 16'hffff;
          if (byte_in == MARK) state <= WAIT_KIND;
        end
        WAIT_KIND: begin
          crc <= crc_next;
          kind <= byte_in;
          left <= IN_BYTES;
          state <= byte_in == RUN ? PAYLOAD : CRC_HIGH;
        end
        PAYLOAD: begin
          crc <= crc_next;
          request <= {byte_in, request} >> 8;
          left <= left - 1'b1;
          if (left == 1) state <= CRC_HIGH;
        end
        CRC_HIGH: begin
          crc <= {crc[15:8] ^ byte_in, crc[7:0]};
          state <= CRC_LOW;
        end
        CRC_LOW: begin
          crc <= 16'hffff;
          left <= 4;
          state <= SEND_MARK;
          if (crc != {8'h00, byte_in} || (kind != RUN && kind != IDENTIFY)) kind <= ERROR;
          else if (kind == RUN) state <= OFFER;
        end
        default: ;
      endcase
    else if (state == OFFER) begin
      if (in_ready) state <= COMPUTE;
    end else if (state == COMPUTE) begin
      left <= OUT_BYTES;
      if (out_valid) state <= SEND_MARK;
    end else if (sending) begin
      if (can_send)
        case (state)
          SEND_MARK: state <= SEND_KIND;
          SEND_KIND: begin
            crc <= crc_next;
            state <= kind == ERROR ? SEND_HIGH : SEND_PAYLOAD;
          end
          SEND_PAYLOAD: begin
            crc <= crc_next;
            left <= left - 1'b1;
            if (left == 1) state <= SEND_HIGH;
          end
          SEND_HIGH: state <= SEND_LOW;
          default: state <= WAIT_MARK;
        endcase
    end else if (forget)
      state <= WAIT_MARK;

  always @(posedge clk)
    if (state == COMPUTE & out_valid) reply <= out_data;
    else if (state == CRC_LOW) reply <= IDENTITY;
    else if (state == SEND_PAYLOAD & can_send) reply <= reply >> 8;
endmodule
