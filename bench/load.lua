-- For wrk: the method, and how many tasks the body is an array of (0: no body). RANDOM in the address becomes
-- another number up to 900 in each request.
function init(args)
   wrk.method = args[1]
   local tasks = tonumber(args[2])
   if tasks > 0 then
      wrk.headers["Content-Type"] = "application/json"
      wrk.body = "[" .. string.rep("{},", tasks - 1) .. "{}]"
   end

   if string.find(wrk.path, "RANDOM") then
      local path = wrk.path
      request = function()
         return wrk.format(nil, (string.gsub(path, "RANDOM", math.random(900))))
      end
   end
end
