// How the runs of `turnkeep replay` are shown: as JSON and as a table.
#pragma once

#include <string>
#include <vector>

#include "invocation.h"
#include "json_output.h"
#include "replay.h"

namespace turnkeep {

Json ReplayRow(const replay::Result& result);
// `labels` are as many as the results, of which there is at least one.
void PrintReplayRows(const std::vector<std::string>& labels,
                     const std::vector<replay::Result>& results, Invocation& invocation);

}  // namespace turnkeep
