#include "options.h"

#include "core/status.h"
#include "each_line.h"

namespace turnkeep::replay {
namespace {

using Text = const std::string&;

absl::Status SetCount(Text text, uint64_t low, uint64_t high, uint64_t* value) {
  TK_ASSIGN_OR_RETURN(const uint64_t parsed, ParseCount(text, "value", high));
  if (parsed < low) return InvalidArgument("{} is below {}", parsed, low);
  *value = parsed;
  return absl::OkStatus();
}

absl::Status SetCount(Text text, uint64_t low, uint64_t high, std::optional<uint64_t>* value) {
  uint64_t parsed = 0;
  TK_RETURN_IF_ERROR(SetCount(text, low, high, &parsed));
  *value = parsed;
  return absl::OkStatus();
}

absl::Status SetCount(Text text, uint64_t low, uint32_t high, uint32_t* value) {
  uint64_t parsed = 0;
  TK_RETURN_IF_ERROR(SetCount(text, low, uint64_t{high}, &parsed));
  *value = static_cast<uint32_t>(parsed);
  return absl::OkStatus();
}

absl::StatusOr<double> Positive(Text text) {
  TK_ASSIGN_OR_RETURN(const double parsed, ParseNonNegative(text, "value"));
  if (parsed <= 0) return InvalidArgument("\"{}\" is not above 0", text);
  return parsed;
}

absl::Status SetPositive(Text text, double* value) {
  TK_ASSIGN_OR_RETURN(*value, Positive(text));
  return absl::OkStatus();
}

absl::Status SetNonNegative(Text text, double* value) {
  TK_ASSIGN_OR_RETURN(*value, ParseNonNegative(text, "value"));
  return absl::OkStatus();
}

constexpr double kMaxGib = double(1 << 22);  // 4 PiB

absl::Status SetGib(Text text, std::optional<double>* value) {
  TK_ASSIGN_OR_RETURN(*value, ParseNonNegative(text, "value"));
  if (**value > kMaxGib) return InvalidArgument("{} GiB is more than 4 PiB", text);
  return absl::OkStatus();
}

absl::Status SetWatermarks(Text text, Options* options) {
  const auto parts = Split(text, ':');
  if (parts.size() != 2) return InvalidArgument("\"{}\" is not HIGH:LOW", text);
  TK_ASSIGN_OR_RETURN(const double high, ParseNonNegative(parts[0], "high"));
  TK_ASSIGN_OR_RETURN(const double low, ParseNonNegative(parts[1], "low"));
  if (high > 1 || low > high) return InvalidArgument("\"{}\" is not 1 >= HIGH >= LOW", text);
  options->high_watermark = high;
  options->low_watermark = low;
  return absl::OkStatus();
}

absl::Status SetStarts(Text text, Options* options) {
  SessionStarts& starts = options->read.starts;
  const size_t colon = text.find(':');
  const std::string rule = text.substr(0, colon);
  const std::string value = colon == std::string::npos ? "" : text.substr(colon + 1);
  if (rule == "file" && !value.empty()) {
    starts.rule = SessionStarts::Rule::kFile;
    starts.file = value;
    return absl::OkStatus();
  }
  if (rule == "users") {
    starts.rule = SessionStarts::Rule::kUsers;
    return SetCount(value, 1, 1u << 20, &starts.users);
  }
  if (rule != "poisson" && rule != "every") {
    return InvalidArgument("\"{}\" is not poisson:RATE, every:SECONDS, users:N or file:PATH", text);
  }
  TK_ASSIGN_OR_RETURN(const double number, Positive(value));
  starts.rule = rule == "every" ? SessionStarts::Rule::kEvery : SessionStarts::Rule::kPoisson;
  starts.per_second = rule == "every" ? 1 / number : number;
  return absl::OkStatus();
}

absl::Status SetQueue(Text text, Options* options) {
  if (text != "none" && text != "gpu") return InvalidArgument("\"{}\" is not none or gpu", text);
  options->queue = text == "gpu" ? QueueRule::kGpu : QueueRule::kNone;
  return absl::OkStatus();
}

absl::Status SetSwitch(Text text, bool* value) {
  if (text != "on" && text != "off") return InvalidArgument("\"{}\" is not on or off", text);
  *value = text == "on";
  return absl::OkStatus();
}

absl::Status SetShare(Text text, std::optional<double>* value) {
  TK_ASSIGN_OR_RETURN(*value, ParseNonNegative(text, "value"));
  if (**value > 1) return InvalidArgument("{} is above 1", text);
  return absl::OkStatus();
}

absl::Status SetPrefetch(Text text, Options* options) {
  std::optional<double> share;
  TK_RETURN_IF_ERROR(SetShare(text, &share));
  options->prefetch_share = *share;
  return absl::OkStatus();
}

absl::Status SetThink(Text text, Options* options) {
  const auto parts = Split(text, ':');
  ThinkTime think;
  if (parts.size() == 2 && parts[0] == "exponential") {
    think.kind = ThinkTime::Kind::kExponential;
  } else if (parts.size() == 2 && parts[0] == "fixed") {
    think.kind = ThinkTime::Kind::kFixed;
  } else if (parts.size() == 3 && parts[0] == "lognormal") {
    think.kind = ThinkTime::Kind::kLognormal;
    TK_ASSIGN_OR_RETURN(think.sigma, ParseNonNegative(parts[2], "sigma"));
  } else {
    return InvalidArgument(
        "\"{}\" is not exponential:SECONDS, fixed:SECONDS or lognormal:SECONDS:SIGMA", text);
  }
  TK_ASSIGN_OR_RETURN(think.mean_s, ParseNonNegative(parts[1], "seconds"));
  options->generator.think = think;
  return absl::OkStatus();
}

absl::Status SetOverflow(Text text, Options* options) {
  if (text != "keep" && text != "invalidate") {
    return InvalidArgument("\"{}\" is not keep or invalidate", text);
  }
  options->generator.keep_on_overflow = text == "keep";
  return absl::OkStatus();
}

absl::Status SetSessionRoom(Text text, Options* options) {
  if (text != "used" && text != "window") {
    return InvalidArgument("\"{}\" is not used or window", text);
  }
  options->reserve_window = text == "window";
  return absl::OkStatus();
}

absl::Status SetIdentity(Text text, Options* options) {
  if (text != "tokens" && text != "hashes") {
    return InvalidArgument("\"{}\" is not tokens or hashes", text);
  }
  options->real.identity = text == "hashes" ? RealIdentity::kHashes : RealIdentity::kTokens;
  return absl::OkStatus();
}

constexpr uint64_t kMaxBlocks = uint64_t{1} << 32;

constexpr OptionSpec kSpecs[] = {
    {"format", "FORMAT", "auto, mooncake, agent, azure or csv",
     [](Text v, Options* o) -> absl::Status {
       o->format = v;
       return absl::OkStatus();
     }},
    {"seed", "N", "Of everything that is drawn",
     [](Text v, Options* o) { return SetCount(v, 0, UINT64_MAX, &o->read.seed); }},
    {"starts", "RULE",
     "Agent sessions begin: poisson:PER_SECOND, every:SECONDS, users:N (one after another each), "
     "file:AZURE_CSV",
     SetStarts},
    {"block-tokens", "N", "Blocks of traces that do not say it (azure, csv)",
     [](Text v, Options* o) { return SetCount(v, 1, 1u << 20, &o->read.default_block_tokens); }},
    {"sessions", "N", "sharegpt: conversations",
     [](Text v, Options* o) { return SetCount(v, 1, 10'000'000u, &o->generator.sessions); }},
    {"session-rate", "N", "sharegpt: conversations that begin in a second",
     [](Text v, Options* o) { return SetPositive(v, &o->generator.sessions_per_s); }},
    {"think", "KIND:S",
     "sharegpt: from an answer to the next turn, exponential:MEAN, fixed:S or "
     "lognormal:MEDIAN:SIGMA",
     SetThink},
    {"overflow", "RULE", "sharegpt: KV of a context past its window: keep (half) or invalidate",
     SetOverflow},
    {"session-room", "RULE",
     "sharegpt: a stored session has room for what it has used, or for its whole window",
     SetSessionRoom},
    {"chunk-tokens", "N", "Chunk length, a multiple of the trace's blocks; 0: those",
     [](Text v, Options* o) { return SetCount(v, 0, 1u << 20, &o->chunk_tokens); }},
    {"requests", "N", "Only the first N requests of the trace; 0: all",
     [](Text v, Options* o) { return SetCount(v, 0, kMaxBlocks, &o->first_requests); }},
    {"bytes-per-token", "BYTES", "--real: KV that stands for a token's, a multiple of 4",
     [](Text v, Options* o) { return SetCount(v, 4, 1u << 20, &o->real.bytes_per_token); }},
    {"identity", "KIND", "--real: prompts as tokens, or as hashes of the engine's own blocks",
     SetIdentity},
    {"write-through", "on|off", "Chunks go to disk when they are saved, not when they are evicted",
     [](Text v, Options* o) { return SetSwitch(v, &o->write_through); }},
    {"host-gib", "GIB", "Host tier", [](Text v, Options* o) { return SetGib(v, &o->host_gib); }},
    {"disk-gib", "GIB", "Disk tier; 0 turns it off",
     [](Text v, Options* o) { return SetGib(v, &o->disk_gib); }},
    {"host-blocks", "N", "Host tier in chunks instead",
     [](Text v, Options* o) { return SetCount(v, 0, kMaxBlocks, &o->host_blocks); }},
    {"disk-blocks", "N", "Disk tier in chunks instead",
     [](Text v, Options* o) { return SetCount(v, 0, kMaxBlocks, &o->disk_blocks); }},
    {"host-live-share", "SHARE",
     "Tiers from the trace: this share of the peak live bytes in the host, the rest on disk",
     [](Text v, Options* o) { return SetShare(v, &o->host_live_share); }},
    {"live-sessions", "on|off",
     "--host-live-share: what a session has used is live until its last turn",
     [](Text v, Options* o) { return SetSwitch(v, &o->live_sessions); }},
    {"live-ttl", "S",
     "--host-live-share: what was used in the last S seconds is live, not what will be used again",
     [](Text v, Options* o) { return SetPositive(v, &o->live_ttl_s); }},
    {"policy", "NAME", "Eviction policy of both tiers",
     [](Text v, Options* o) -> absl::Status {
       o->policy = v;
       return absl::OkStatus();
     }},
    {"lookahead", "N", "How many of the next requests the policy is told",
     [](Text v, Options* o) { return SetCount(v, 0, kMaxBlocks, &o->lookahead); }},
    {"prefetch", "SHARE",
     "Prefetch what next_use predicts, or --lookahead tells; of the host tier, unused at a time",
     SetPrefetch},
    {"watermarks", "HIGH:LOW", "Where eviction begins and ends, as shares of a tier",
     SetWatermarks},
    {"model", "NAME",
     "llama-13b, llama-65b, llama-70b, falcon-40b, llama-3-8b-h200, "
     "llama-3-70b-h200",
     [](Text v, Options* o) -> absl::Status {
       o->model = v;
       return absl::OkStatus();
     }},
    {"kv-bytes-per-token", "BYTES", "Instead of the model's",
     [](Text v, Options* o) { return SetCount(v, 1, 1u << 30, &o->kv_bytes_per_token); }},
    {"prefill-tokens-per-s", "N", "Of tokens at the start of a context, instead of the model's",
     [](Text v, Options* o) -> absl::Status {
       TK_ASSIGN_OR_RETURN(o->prefill_tokens_per_s, Positive(v));
       return absl::OkStatus();
     }},
    {"prefill-half-speed-tokens", "N",
     "Context at which a token takes twice as long to prefill as at the start, instead of the "
     "model's; 0: nowhere",
     [](Text v, Options* o) -> absl::Status {
       TK_ASSIGN_OR_RETURN(o->prefill_half_speed_tokens, ParseNonNegative(v, "value"));
       return absl::OkStatus();
     }},
    {"prefill-floor", "on|off", "A prefill takes no less than reading the weights once",
     [](Text v, Options* o) { return SetSwitch(v, &o->prefill_floor); }},
    {"decode-gb-per-s", "GB",
     "Rate at which weights and KV are read, instead of the memory of the model's GPUs",
     [](Text v, Options* o) -> absl::Status {
       TK_ASSIGN_OR_RETURN(o->decode_gb_per_s, Positive(v));
       return absl::OkStatus();
     }},
    {"host-gb-per-s", "GB", "From host memory to the GPU",
     [](Text v, Options* o) { return SetPositive(v, &o->host_gb_per_s); }},
    {"disk-gb-per-s", "GB", "From disk",
     [](Text v, Options* o) { return SetPositive(v, &o->disk_gb_per_s); }},
    {"queue", "RULE", "none: every request is served as it arrives; gpu: one server, a batch",
     SetQueue},
    {"batch", "N", "Requests that decode together",
     [](Text v, Options* o) { return SetCount(v, 1, 1u << 16, &o->batch); }},
    {"read-buffer-gib", "GIB",
     "--queue gpu: GPU memory into which the next job's KV is loaded while others are served",
     [](Text v, Options* o) { return SetNonNegative(v, &o->read_buffer_gib); }},
    {"warmup", "N", "Requests that are served first and not counted",
     [](Text v, Options* o) { return SetCount(v, 0, kMaxBlocks, &o->warmup); }},
    {"decline", "on|off", "Leave a restore that takes longer than prefill",
     [](Text v, Options* o) { return SetSwitch(v, &o->decline); }},
    {"stop-reasons", "on|off", "Whether the policy is told why a turn ended",
     [](Text v, Options* o) { return SetSwitch(v, &o->stop_reasons); }},
    {"gpu-price", "USD", "A GPU an hour",
     [](Text v, Options* o) { return SetNonNegative(v, &o->prices.gpu_hour); }},
    {"dram-price", "USD", "A GB of host memory an hour",
     [](Text v, Options* o) { return SetNonNegative(v, &o->prices.dram_gb_hour); }},
    {"disk-price", "USD", "A GB of disk an hour",
     [](Text v, Options* o) { return SetNonNegative(v, &o->prices.disk_gb_hour); }},
};

}  // namespace

std::span<const OptionSpec> OptionSpecs() { return kSpecs; }

absl::Status SetOption(const std::string& name, const std::string& value, Options* options) {
  for (const OptionSpec& spec : kSpecs) {
    if (name != spec.name) continue;
    const absl::Status status = spec.set(value, options);
    if (status.ok()) return status;
    return InvalidArgument("--{}: {}", name, MessageOf(status));
  }
  return InvalidArgument("--{}: no such option of a replay", name);
}

absl::StatusOr<Model> ModelOf(const Options& options) {
  TK_ASSIGN_OR_RETURN(Model model, FindModel(options.model));
  if (options.kv_bytes_per_token) model.kv_bytes_per_token = *options.kv_bytes_per_token;
  if (options.prefill_tokens_per_s) model.prefill_tokens_per_s = *options.prefill_tokens_per_s;
  if (options.prefill_half_speed_tokens) {
    model.half_speed_tokens = *options.prefill_half_speed_tokens;
  }
  model.prefill_floor = options.prefill_floor;
  if (options.decode_gb_per_s) model.memory_bytes_per_s = *options.decode_gb_per_s * 1e9;
  return model;
}

absl::StatusOr<Sweep> ParseSweep(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    return InvalidArgument("--sweep: \"{}\" is not OPTION=VALUE,VALUE,…", text);
  }
  Sweep sweep{.name = text.substr(0, equals), .values = {}};
  for (const auto value : Split(std::string_view(text).substr(equals + 1), ',')) {
    sweep.values.emplace_back(value);
  }
  return sweep;
}

}  // namespace turnkeep::replay
